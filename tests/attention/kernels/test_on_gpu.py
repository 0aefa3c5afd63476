"""The kernels on a CUDA device against their naive twins in fp32 and, for the reference, on the CPU."""

import pytest
import torch

from mnemos.attention.kernels.dispatch import (
    forced,
    lse_merge,
    page_gather,
    quantize_pack,
    route_mass,
    route_msa,
    split_kv_attention,
)
from mnemos.attention.kernels.memory_table import plan_splits, table_of_payloads
from mnemos.attention.kernels.segments import SegmentKeys, segments_of_payloads
from mnemos.attention.kv import SpanKV
from mnemos.attention.memory_codec import TraceBits, encode_kv, encode_route

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LAYERS, KV_HEADS = 2, 2


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """New tensors of floats are full of NaN, those of integers of ones."""
    plain = torch.empty

    def empty(*args: object, **kwargs: object) -> torch.Tensor:
        tensor = plain(*args, **kwargs)  # type: ignore[call-overload]
        return tensor.fill_(float("nan") if tensor.is_floating_point() else 1)

    monkeypatch.setattr(torch, "empty", empty)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize(("group", "dim"), [(3, 64), (1, 80), (4, 96), (4, 128), (16, 256), (7, 128)])
def test_split_kv_attention(bits: TraceBits, group: int, dim: int, dtype: torch.dtype) -> None:
    torch.manual_seed(dim)
    sizes = (1, 63, 65, 997, 47)
    payloads = [
        encode_kv([SpanKV(*(torch.randn(LAYERS, KV_HEADS, n, dim) for _ in range(2)))], bits) for n in sizes
    ]
    host = table_of_payloads(payloads)
    table = host.to("cuda")
    reads = [tuple(range(5)), (3,), (0,)]
    q = torch.randn(3, KV_HEADS * group, dim).to(dtype)
    bias = torch.linspace(-1, 1, 5)
    expected = split_kv_attention(q, host, plan_splits(host, reads), 1, dim**-0.5, bias)
    plan = plan_splits(table, reads)
    ours = split_kv_attention(q.cuda(), table, plan, 1, dim**-0.5, bias.cuda())
    for part, twin in zip(ours, expected, strict=True):
        assert (part.cpu() - twin).norm() / twin.norm() < (1e-2 if bits == 16 else 3e-3)
    again = split_kv_attention(q.cuda(), table, plan, 1, dim**-0.5, bias.cuda())
    assert all(torch.equal(*pair) for pair in zip(ours, again, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lse_merge(dtype: torch.dtype) -> None:
    parts = [torch.randn(997, 128), torch.randn(997), torch.randn(997, 128).to(dtype), torch.randn(997)]
    expected = lse_merge(*parts, 0.8)
    ours = lse_merge(*(part.cuda() for part in parts), 0.8).cpu()
    assert (ours.float() - expected.float()).norm() / expected.float().norm() < 1e-2


@pytest.mark.parametrize(("heads", "rows", "dim"), [(1, 1, 64), (3, 67, 64), (2, 31, 80), (2, 64, 128)])
def test_route_mass(heads: int, rows: int, dim: int) -> None:
    payloads = [
        encode_route([torch.randn(heads, n, dim) for n in sizes], torch.zeros(2))
        for sizes in ((1,), (63, 65), (997, 13), (128,) * 9)
    ]
    host = segments_of_payloads(payloads)
    queries = torch.randn(heads, rows, dim)
    device = SegmentKeys(*(part.cuda() for part in (host.keys, host.scales, host.starts, host.owner)))
    ours = route_mass(queries.cuda(), device, dim**-0.5).cpu()
    assert torch.allclose(ours, route_mass(queries, host, dim**-0.5), atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("tokens", "chunks", "width"), [(1, 1, 64), (67, 997, 1024), (16, 65, 80)])
def test_route_msa(tokens: int, chunks: int, width: int, dtype: torch.dtype) -> None:
    queries, keys = torch.randn(tokens, width).to(dtype), torch.randn(chunks, width).to(dtype)
    expected = (queries.double() @ keys.double().T).amax(dim=0).float()
    ours = route_msa(queries.cuda(), keys.cuda()).cpu()
    assert (ours - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("tokens", "dim"), [(1, 64), (63, 80), (65, 96), (997, 128), (47, 256)])
def test_quantize_pack_bit_for_bit(bits: int, tokens: int, dim: int, dtype: torch.dtype) -> None:
    k, v = ((torch.randn(2, 2, tokens, dim) * torch.logspace(-3, 2, dim)).to(dtype) for _ in range(2))
    for ours, expected in zip(
        quantize_pack(k.cuda(), v.cuda(), bits), quantize_pack(k, v, bits), strict=True
    ):
        assert torch.equal(ours.cpu().view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("where", ["pinned", "device"])
def test_page_gather(where: str) -> None:
    source = torch.randint(0, 256, (1 << 20,), dtype=torch.uint8)
    pages = torch.tensor([[0, 1 << 15, 16], [160, 0, 28672], [4096, 1 << 17, (1 << 16) + 16]])
    expected, out = (torch.zeros(1 << 18, dtype=torch.uint8, device=to) for to in ("cpu", "cuda"))
    with forced("naive"):
        page_gather(source, pages, expected)
    page_gather(source.pin_memory() if where == "pinned" else source.cuda(), pages, out)
    assert torch.equal(out.cpu(), expected)


def test_a_tensor_on_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="move one of them"):
        route_msa(torch.randn(3, 64), torch.randn(3, 64, device="cuda"))
