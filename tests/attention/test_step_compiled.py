"""Packed products against plain ones, and the compiled step against PyTorch's."""

import ctypes
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mnemos.attention.compiled import kernels
from mnemos.attention.decoder import Decoder
from mnemos.attention.encode import encode_prefix
from mnemos.attention.hf_loader import load_directory
from mnemos.attention.kv import KVCache, SpanKV
from mnemos.attention.models import load
from mnemos.attention.step_compiled import MAX_ROWS, PackedFormat, PackedWeights
from mnemos.attention.weights import Weights
from mnemos.errors import ContextOverflowError

FAMILIES = ("llama2", "llama3", "mistral", "qwen2", "qwen3", "gemma3", "smollm3")
SHAPES = [(1, 1), (8, 32), (9, 33), (65, 31), (63, 65), (97, 576), (40, 1536)]


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    found = kernels()
    if found is None:
        pytest.skip("no C compiler here")
    return found


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dequantized(packed: PackedWeights) -> Tensor:
    """What the packed codes stand for, `[out, in]`: a single one is an activation without error."""
    return packed(torch.eye(packed.matrix.inner)).T.contiguous()


@pytest.mark.parametrize("form", ["int4", "int8"])
@pytest.mark.parametrize(("out", "inner"), SHAPES)
def test_products(library: ctypes.CDLL, form: PackedFormat, out: int, inner: int) -> None:
    weight = random(out, inner)
    packed = PackedWeights(library, weight, form)
    stands_for = dequantized(packed)
    assert stands_for.shape == weight.shape
    steps = weight.abs().max() * (2 / 15 if form == "int4" else 1 / 127)
    assert (stands_for - weight).abs().max() <= 0.51 * steps
    x = random(5, inner, seed=1) * torch.rand(inner).pow(6) * 40  # a few channels outweigh the others
    found = packed(x)
    # Half a level of each activation, in its group of 32, by all weights of the output.
    padded = torch.nn.functional.pad(x, (0, -inner % 32)).view(5, -1, 32)
    levels = (padded.abs().amax(-1) / 127).repeat_interleave(32, dim=1)[:, :inner]
    centre = 0.0 if form == "int8" else stands_for  # four bits multiply codes around the middle of a group
    room = (levels * 0.51) @ (stands_for.abs() + torch.as_tensor(centre).abs()).T + 1e-4
    assert ((found.double() - x.double() @ stands_for.double().T).abs() <= room).all()


@pytest.mark.parametrize("form", ["int4", "int8"])
def test_rows_together_equal_rows_alone(library: ctypes.CDLL, form: PackedFormat) -> None:
    packed = PackedWeights(library, random(41, 96), form)
    x = random(11, 96, seed=2)
    together = packed(x)
    assert torch.equal(together, torch.cat([packed(row[None]) for row in x]))


@pytest.mark.parametrize("codes", [(0, 15), (0, 9), (3, 12), (0, 0)])
def test_four_bits_hold_a_four_bit_file_whichever_codes_it_uses(
    library: ctypes.CDLL, codes: tuple[int, int]
) -> None:
    low, high = codes
    levels = torch.randint(low, high + 1, (24, 64), generator=torch.Generator().manual_seed(4)).float()
    scale = (torch.rand(24, 2, generator=torch.Generator().manual_seed(5)) * 0.05 + 0.01).half().float()
    weight = (levels - 8) * scale.repeat_interleave(32, dim=1)
    packed = PackedWeights(library, weight, "auto")
    assert packed.bits == 4
    assert (dequantized(packed) - weight).abs().max() < 0.01 * scale.max()


def test_weights_that_four_bits_would_round_get_eight(library: ctypes.CDLL) -> None:
    weight = random(24, 64)
    packed = PackedWeights(library, weight, "auto")
    assert packed.bits == 8
    assert (dequantized(packed) - weight).abs().max() < 0.02


@pytest.mark.parametrize("form", ["int4", "int8"])
def test_the_largest_codes_do_not_saturate(library: ctypes.CDLL, form: PackedFormat) -> None:
    for sign in (1.0, -1.0):
        weight = torch.ones(8, 1024)
        weight[:, ::32] = -1.0  # else the groups of four bits have one level
        exact = sign * 3.0 * weight.sum(1)
        found = PackedWeights(library, weight, form)(torch.full((1, 1024), sign * 3.0))[0]
        assert torch.allclose(found, exact, rtol=1e-3)


@pytest.mark.parametrize("form", ["int4", "int8"])
def test_zeros_tiny_values_and_what_is_not_finite(library: ctypes.CDLL, form: PackedFormat) -> None:
    packed = PackedWeights(library, random(7, 33), form)
    assert torch.equal(packed(torch.zeros(1, 33)), torch.zeros(1, 7))
    assert packed(torch.full((1, 33), 1e-42)).abs().max() < 1e-30
    assert torch.equal(PackedWeights(library, torch.zeros(3, 4), form)(torch.ones(1, 4)), torch.zeros(1, 3))
    for bad in (math.nan, math.inf, -math.inf):
        x = torch.zeros(1, 33)
        x[0, 5] = bad
        assert not packed(x).isfinite().any()


def plain_twin(decoder: Decoder, config: Any, weights: Weights) -> Decoder:
    """A decoder whose steps are PyTorch's but for the products of packed weights."""
    assert decoder.compiled is not None
    library, form = decoder.compiled.library, decoder.compiled.form
    twin = Decoder(config, weights)
    for layer in twin.layers:
        for projection in (layer.qkv, layer.o, layer.gate_up, layer.down):
            projection.step = PackedWeights(library, projection.weight, form)
    head: PackedFormat = "int8" if form == "int4" else form
    twin.lm_head.step = PackedWeights(library, twin.lm_head.weight, head)
    return twin


def _spans(decoder: Decoder, prefix: SpanKV, tokens: list[int]) -> list[SpanKV]:
    spans = []
    for first, count in ((7, 9), (20, 4)):
        cache = decoder.new_cache(prefix.tokens + count)
        cache.load_prefix(prefix)
        decoder.prefill(tokens[first : first + count], cache)
        spans.append(cache.snapshot(prefix.tokens, prefix.tokens + count))
    return spans


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_with_and_without_memories(
    library: ctypes.CDLL,
    name: str,
    family: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MNEMOS_CACHE_DIR", str(tmp_path))
    config, weights, _, _ = load_directory(family(name).directory)
    fast = Decoder(config, weights, library=library, packed="int8")
    plain = plain_twin(fast, config, weights)
    tokens = torch.randint(3, 288, (60,), generator=torch.Generator().manual_seed(3)).tolist()
    prefix = encode_prefix(plain, tokens[:5])
    for temperature in (None, 1.0, 0.7):  # without memories, with plain ones, with weighed ones

        def prepared(decoder: Decoder, temperature: float | None = temperature) -> KVCache:
            cache = decoder.new_cache(90)
            cache.k.fill_(torch.nan)
            cache.v.fill_(torch.nan)
            cache.load_prefix(prefix)
            if temperature is not None:
                cache.page_in(_spans(plain, prefix, tokens), temperature=temperature, mass_scale=0.8)
            decoder.prefill(tokens[5:30], cache)
            return cache

        caches = [prepared(fast), prepared(plain), prepared(fast)]
        rows = [
            torch.stack([decoder.forward([token], cache) for token in tokens[30:]])
            for decoder, cache in zip((fast, plain), caches, strict=False)
        ]
        assert torch.allclose(rows[0][0], rows[1][0], atol=2e-3)
        # Later on an activation close to a tie may round the other way, which a small random model remembers.
        assert (rows[0] - rows[1]).abs().mean() < 0.02 * rows[1].abs().mean()
        parts = [tokens[30:33], tokens[33:34], tokens[34:50], tokens[50:]]
        together = torch.cat([fast.step_rows(part, caches[2]) for part in parts])
        assert torch.equal(together, rows[0])
        end = caches[0].length
        assert torch.equal(caches[0].k[:, :, :end], caches[2].k[:, :, :end])
        assert torch.equal(caches[0].v[:, :, :end], caches[2].v[:, :, :end])


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("weights", ["auto", "int8", "int4"])
def test_it_stays_near_the_exact_model_whatever_the_formats(
    library: ctypes.CDLL, hf_directory: Path, cache: Path, dtype: str, weights: str
) -> None:
    exact = load(hf_directory, dtype="fp32", decode_weights="bf16").decoder
    decoder = load(hf_directory, dtype=dtype, decode_weights=weights, compile=True).decoder
    assert decoder.compiled is not None
    caches = [exact.new_cache(12), decoder.new_cache(12)]
    for token in (5, 9, 200, 17):
        a, b = (
            torch.softmax(d.forward([token], c), -1) for d, c in zip((exact, decoder), caches, strict=True)
        )
        room = 0.3 if weights == "int4" else 0.1  # random weights fill 16 levels badly
        assert (a - b).abs().sum() / 2 < room


def test_threads_change_nothing(library: ctypes.CDLL, hf_directory: Path, cache: Path) -> None:
    decoder = load(hf_directory, compile=True).decoder
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            state = decoder.new_cache(20)
            found.append(decoder.step_rows(list(range(9, 25)), state))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_full_cache_is_refused_and_left_alone(
    library: ctypes.CDLL, hf_directory: Path, cache: Path
) -> None:
    decoder = load(hf_directory, compile=True).decoder
    assert decoder.draft_rows == MAX_ROWS
    state = decoder.new_cache(3)
    decoder.step_rows([5, 6], state)
    with pytest.raises(ContextOverflowError):
        decoder.step_rows([7, 8], state)
    assert state.length == 2
    decoder.forward([7], state)


def test_without_it_rows_are_steps(hf_directory: Path, cache: Path) -> None:
    decoder = load(hf_directory, compile=False).decoder
    assert decoder.compiled is None and decoder.draft_rows == 1
    caches = [decoder.new_cache(8), decoder.new_cache(8)]
    rows = decoder.step_rows([5, 6, 7], caches[0])
    assert torch.equal(rows, torch.stack([decoder.forward([token], caches[1]) for token in (5, 6, 7)]))
