"""place_rows and working_attention in Triton's interpreter against their naive twins."""

import pytest
import torch
from torch import Tensor

from mnemos.attention.kernels.dispatch import forced, place_rows, working_attention
from mnemos.attention.kernels.working_rows import (
    CAPACITY,
    FIRST_PREFIX,
    FIRST_WORKING,
    K_AT,
    LENGTH,
    PREFIX,
    SLOT,
    V_AT,
    WorkingRows,
)

LAYERS, KV_HEADS = 2, 2
NOTHING = float("-inf")


def rows_of(
    lengths: list[int], dim: int, dtype: torch.dtype, *, prefix: int = 0, window: int | None = None
) -> WorkingRows:
    """Caches of different capacities, NaN behind what is seen; a length of 0 pads the batch."""
    torch.manual_seed(sum(lengths) + dim)
    working = WorkingRows.empty(len(lengths), KV_HEADS, "cpu")
    for row, length in enumerate(lengths):
        if not length:
            continue
        capacity = length + row + 1
        buffers = tuple(torch.randn(LAYERS, KV_HEADS, capacity, dim).to(dtype) for _ in range(2))
        for part in buffers:
            part[:, :, length:] = float("nan")
        working.buffers[row] = (buffers[0], buffers[1])
        fields = working.fields[:, row]
        fields[SLOT], fields[LENGTH], fields[PREFIX], fields[CAPACITY] = length - 1, length, prefix, capacity
        fields[K_AT], fields[V_AT] = (part.data_ptr() for part in buffers)
        if window is not None:
            fields[FIRST_PREFIX] = min(max(length - window, 0), prefix)
            fields[FIRST_WORKING] = max(length - window, 0)
    return working


def near(ours: Tensor, twin: Tensor, dtype: torch.dtype) -> bool:
    difference = (ours.float() - twin.float()).norm() / twin.float().norm()
    return bool(difference < (5e-3 if dtype == torch.float16 else 1e-5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("group", "dim", "splits"), [(3, 64, 4), (1, 80, 1), (4, 128, 8)])
def test_attention_equals_the_naive_twin(
    group: int, dim: int, splits: int, dtype: torch.dtype, poisoned: None
) -> None:
    working = rows_of([1, 63, 65, 0, 197], dim, dtype)
    q = torch.randn(5, KV_HEADS * group, dim).to(dtype)
    results = []
    for path in ("triton", "naive"):
        with forced(path):
            results.append(working_attention(q, working, 1, dim**-0.5, splits=splits))
    assert near(*results, dtype)
    assert not results[0][3].any()  # a row that pads the batch


@pytest.mark.parametrize("window", [1, 7, 64, 150])
def test_a_window_leaves_out_the_same_slots(window: int, poisoned: None) -> None:
    working = rows_of([5, 70, 197], 64, torch.float32, prefix=4, window=window)
    q = torch.randn(3, KV_HEADS * 2, 64)
    results = []
    for path in ("triton", "naive"):
        with forced(path):
            results.append(working_attention(q, working, 0, 0.125, is_local=True, splits=4))
    assert near(*results, torch.float32)


def test_the_memory_part_is_weighed_and_joined(poisoned: None) -> None:
    working = rows_of([9, 70, 0, 3], 64, torch.float32)
    q = torch.randn(4, KV_HEADS * 2, 64)
    out, lse = torch.randn(4, 4, 64), torch.randn(4, 4) * 3
    lse[1], out[1] = NOTHING, float("nan")  # a row that reads no memory
    mass = torch.tensor([0.8, 1.0, 1.0, 0.9])
    results = []
    for path in ("triton", "naive"):
        with forced(path):
            results.append(working_attention(q, working, 1, 0.125, memory=(out, lse, mass), splits=2))
    assert near(*results, torch.float32)
    assert torch.isfinite(results[0]).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("has_norm", [True, False])
def test_rows_are_placed_as_the_naive_twin_places_them(
    has_norm: bool, dtype: torch.dtype, poisoned: None
) -> None:
    dim, heads = 80, 6
    qkv = torch.randn(3, (heads + 2 * KV_HEADS) * dim).to(dtype)
    cis = torch.randn(5, dim)
    source = torch.tensor([2, 0], dtype=torch.int32)
    norm = torch.randn(heads + KV_HEADS, dim) if has_norm else None
    queries, caches = [], []
    for path in ("triton", "naive"):
        working = rows_of([4, 0, 9], dim, dtype)
        with forced(path):
            queries.append(place_rows(qkv, cis, source, norm, 1e-6, working, 1))
        caches.append([part.nan_to_num() for pair in working.buffers if pair for part in pair])
    assert near(*queries, dtype)
    assert all(near(*pair, dtype) for pair in zip(*caches, strict=True))
