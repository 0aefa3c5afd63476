"""lse_merge and page_gather in Triton's interpreter against their naive twins."""

import pytest
import torch

from mnemos.attention.kernels.dispatch import forced, lse_merge, page_gather


@pytest.mark.parametrize(("rows", "dim"), [(1, 64), (63, 80), (65, 96), (7, 128), (3, 256)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_merge_equals_the_naive_twin(rows: int, dim: int, dtype: torch.dtype, poisoned: None) -> None:
    torch.manual_seed(rows)
    memory, working = torch.randn(rows, dim), torch.randn(rows, dim).to(dtype)
    memory_lse, working_lse = torch.randn(rows) * 5, torch.randn(rows) * 5
    results = []
    for path in ("triton", "naive"):
        with forced(path):
            results.append(lse_merge(memory, memory_lse, working, working_lse, 0.8))
    assert results[0].dtype == dtype
    assert torch.allclose(
        results[0].float(), results[1].float(), atol=1e-3 if dtype == torch.float16 else 1e-5
    )


def test_an_empty_part_has_no_share(poisoned: None) -> None:
    nothing = float("-inf")
    memory, working = torch.full((3, 64), float("nan")), torch.ones(3, 64)
    memory[2] = 2.0
    working[1:] = float("nan")
    with forced("triton"):
        out = lse_merge(
            memory, torch.tensor([nothing, nothing, 1.0]), working, torch.tensor([1.0, nothing, nothing])
        )
    assert out[:, 0].tolist() == [1.0, 0.0, 2.0]
    assert torch.isfinite(out).all()


def test_gather_equals_the_naive_twin() -> None:
    source = torch.randint(0, 256, (65536,), dtype=torch.uint8)
    pages = torch.tensor(
        [[0, 16, 16], [48, 32, 17 * 16], [1024, 4096, 16384 + 16], [16, 30000 // 16 * 16, 0]]
    )
    results = []
    for path in ("triton", "naive"):
        out = torch.full((32768,), 7, dtype=torch.uint8)
        with forced(path):
            page_gather(source, pages, out)
        results.append(out)
    assert torch.equal(*results)
    assert int((results[0] != 7).sum()) > 16000


def test_pages_of_no_bytes_move_nothing() -> None:
    out = torch.full((32,), 7, dtype=torch.uint8)
    with forced("triton"):
        page_gather(torch.zeros(32, dtype=torch.uint8), torch.tensor([[0, 0, 0], [16, 16, 0]]), out)
    assert out.tolist() == [7] * 32
