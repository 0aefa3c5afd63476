"""What only a CUDA device shows: captured graphs, addresses in kernels, copies in place."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mnemos.attention.encode import encode_prefix
from mnemos.attention.gpu.captured import CapturedStep
from mnemos.attention.gpu.decode import DecodeLoop
from mnemos.attention.gpu.resident_keys import ResidentKeys
from mnemos.attention.kernels.dispatch import forced, place_rows, working_attention
from mnemos.attention.kernels.working_rows import CAPACITY, K_AT, LENGTH, SLOT, V_AT, WorkingRows
from mnemos.attention.memory_codec import decode_route, encode_kv, encode_route
from mnemos.attention.sampling import Sampler, Sampling, best_token

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

FAMILIES = ("llama", "qwen3", "qwen2", "gemma3", "yarn")
READING = {"temperature": 0.8, "mass_scale": 0.9}


def tokens_of(count: int, seed: int = 1) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 101, (count,), generator=generator).tolist()


def difference(ours: Tensor, twin: Tensor) -> float:
    return float((ours.float().cpu() - twin.float()).norm() / twin.float().norm())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("group", "dim"), [(3, 64), (1, 80), (4, 96), (4, 128), (16, 256)])
def test_working_memory_kernels_equal_their_twins(group: int, dim: int, dtype: torch.dtype) -> None:
    torch.manual_seed(dim)
    lengths, heads = [1, 63, 0, 997], 2 * group
    memory = (torch.randn(4, heads, dim), torch.randn(4, heads) * 2, torch.rand(4) + 0.5)
    memory[1][1] = float("-inf")
    memory[0][1] = float("nan")
    qkv = torch.randn(4, (heads + 4) * dim).to(dtype)
    cis, source = torch.randn(6, dim), torch.tensor([3, 0], dtype=torch.int32)
    norm = torch.randn(heads + 2, dim)
    buffers = [torch.randn(2, 2, length + 3, dim).to(dtype) for length in lengths for _ in range(2)]
    results = []
    for device, path in (("cuda", "triton"), ("cpu", "naive")):
        working = WorkingRows.empty(4, 2, "cpu")
        for row, length in enumerate(lengths):
            if not length:
                continue
            k, v = (part.clone().to(device) for part in buffers[2 * row : 2 * row + 2])
            working.buffers[row] = (k, v)
            fields = working.fields[:, row]
            fields[SLOT], fields[LENGTH], fields[CAPACITY] = length - 1, length, length + 3
            fields[K_AT], fields[V_AT] = k.data_ptr(), v.data_ptr()
        working.fields = working.fields.to(device)
        parts = [part.to(device) for part in (qkv, cis, source, norm, *memory)]
        with forced(path):
            queries = place_rows(parts[0], parts[1], parts[2], parts[3], 1e-6, working, 1)
            out = working_attention(
                queries[:4], working, 1, dim**-0.5, memory=(parts[4], parts[5], parts[6]), splits=8
            )
        results.append((queries, out))
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    for ours, twin in zip(*results, strict=True):
        assert difference(ours, twin) < tolerance


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stride", [0.0, 0.5])
def test_captured_steps_decode_as_the_cpu_does(family: str, stride: float, pair: Callable[..., Any]) -> None:
    models = pair(family, 4, "cuda")
    caches = models.caches([0, 2, 1], stride=stride, **READING)
    decoders = (models.host, models.device)
    logits = [decoder.forward(tokens_of(9), cache) for decoder, cache in zip(decoders, caches, strict=True)]
    for _ in range(30):
        assert difference(logits[1], logits[0]) < 5e-3
        token = int(logits[0].argmax())
        logits = [decoder.forward([token], cache) for decoder, cache in zip(decoders, caches, strict=True)]
    (made,) = (each for each in models.device.loop._made.values() if each.buffers.memory is not None)
    assert isinstance(made.run, CapturedStep)


def test_a_graph_serves_other_conversations_and_grown_buffers(pair: Callable[..., Any]) -> None:
    models = pair("llama", 4, "cuda")
    loop = DecodeLoop(models.device)
    for round_ in range(3):
        rows = [
            models.caches(memories, capacity=1500, **READING)
            for memories in ([0, 2], [1], [], [round_ % 4, (round_ + 1) % 4])
        ]
        for index, caches in enumerate(rows):
            count = 505 if round_ == 1 else 5 + index
            for cache, decoder in zip(caches, (models.host, models.device), strict=True):
                decoder.prefill(tokens_of(count, index), cache)
        for step in range(10):
            tokens = tokens_of(4, step)
            together = loop.step(tokens, [cache for _, cache in rows])
            for token, (cache, _), ours in zip(tokens, rows, together, strict=True):
                assert difference(ours, models.host.forward([token], cache)) < 5e-3
    assert len(loop.buckets) <= 2


def test_steps_allocate_nothing_but_their_logits(pair: Callable[..., Any]) -> None:
    models = pair("qwen3", 4, "cuda", torch.bfloat16)
    cache = models.caches([0, 1], **READING)[1]
    for token in tokens_of(3):
        models.device.forward([token], cache)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for token in tokens_of(50):
        logits = models.device.forward([token], cache)
    assert torch.cuda.memory_allocated() - before <= 2 * logits.numel() * 4 + 4096
    assert torch.isfinite(logits).all()


def test_traces_made_there_are_those_made_here(pair: Callable[..., Any]) -> None:
    models = pair("llama", 4, "cuda")
    spans = []
    for decoder in (models.host, models.device):
        cache = decoder.new_cache(100)
        cache.load_prefix(models.prefix)
        decoder.prefill(tokens_of(40), cache)
        spans.append(cache.snapshot(5, 45))
    assert spans[1].k.is_cuda
    assert difference(spans[1].k, spans[0].k) < 1e-4
    assert encode_kv([spans[1]], 4) == encode_kv([spans[1].to(torch.device("cpu"))], 4)
    assert encode_prefix(models.device, tokens_of(5, 2)).k.is_cuda


def test_resident_keys_are_scored_and_zeroed_there() -> None:
    torch.manual_seed(1)
    records = {
        f"m{i}": decode_route(encode_route([torch.randn(2, 50 + i, 64)], torch.zeros(3)), coded=True)
        for i in range(40)
    }
    rows = [torch.randn(5, 64), torch.randn(8, 64)]
    found = []
    for device in ("cuda", "cpu"):
        keys = ResidentKeys(device)
        found.append(keys.span_mass("a", records, rows, 0.125, as_of=0))
        segments = keys._stretches["a"]._segments
        keys.drop()
        assert not segments.keys.any()
    assert torch.allclose(*found, atol=2e-4)


def test_the_greedy_token_is_the_hosts() -> None:
    logits = torch.randn(5000)
    assert best_token(logits.cuda()) == int(logits.argmax()) == Sampler(Sampling())(logits.cuda())
