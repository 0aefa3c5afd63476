"""route_mass and route_msa in Triton's interpreter against their naive twins."""

import pytest
import torch

from mnemos.attention.kernels.dispatch import forced, route_mass, route_msa
from mnemos.attention.kernels.segments import segments_of_payloads
from mnemos.attention.memory_codec import encode_route


@pytest.mark.parametrize(
    ("heads", "rows", "dim", "spans"),
    [
        (1, 1, 64, ((1,),)),
        (2, 17, 64, ((63, 65), (1,), (130,))),
        (1, 67, 80, ((13, 3),)),
        (2, 5, 128, ((1,) * 9,)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_mass_equals_the_naive_twin(
    heads: int, rows: int, dim: int, spans: tuple[tuple[int, ...], ...], dtype: torch.dtype, poisoned: None
) -> None:
    torch.manual_seed(dim)
    payloads = [
        encode_route([torch.randn(heads, size, dim) for size in sizes], torch.zeros(4)) for sizes in spans
    ]
    segments = segments_of_payloads(payloads)
    queries = torch.randn(heads, rows, dim).to(dtype)
    results = []
    for path in ("triton", "naive"):
        with forced(path):
            results.append(route_mass(queries, segments, dim**-0.5))
    assert torch.allclose(*results, atol=5e-3)


@pytest.mark.parametrize(
    ("tokens", "chunks", "width"), [(1, 1, 64), (17, 63, 80), (67, 65, 192), (3, 131, 128)]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_msa_equals_the_naive_twin(
    tokens: int, chunks: int, width: int, dtype: torch.dtype, poisoned: None
) -> None:
    torch.manual_seed(width)
    queries, keys = torch.randn(tokens, width).to(dtype), torch.randn(chunks, width).to(dtype)
    results = []
    for path in ("triton", "naive"):
        with forced(path):
            results.append(route_msa(queries, keys))
    error = (results[0] - results[1]).norm() / results[1].norm()
    assert error < 1e-5
