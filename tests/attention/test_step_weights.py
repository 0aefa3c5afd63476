"""The formats of decode weights against plain products of what their codes stand for."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mnemos.attention.decoder import Decoder
from mnemos.attention.encode import encode_prefix
from mnemos.attention.hf_loader import load_directory
from mnemos.attention.kv import SpanKV
from mnemos.attention.linear import Projection
from mnemos.attention.models import load, pick_formats
from mnemos.attention.step_weights import (
    Int4Weight,
    Int8Weight,
    PlainWeight,
    fits_int4,
    has_int4,
    has_int8,
    pick_format,
    quantize_groups,
    quantize_rows,
)
from mnemos.errors import UsageError

FAMILIES = ("llama2", "llama3", "mistral", "qwen2", "qwen3", "gemma3", "smollm3")
needs_int8 = pytest.mark.skipif(not has_int8(), reason="no FBGEMM in this build of PyTorch")
needs_int4 = pytest.mark.skipif(not has_int4(), reason="no int4 kernel in this build of PyTorch")


def dequantized(weight: Tensor) -> Tensor:
    codes, scales = quantize_rows(weight)
    return codes.float() * scales[:, None]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@needs_int8
@pytest.mark.parametrize(("out", "inner"), [(1, 1), (1, 63), (65, 1), (63, 65), (97, 576), (576, 101)])
def test_int8_keeps_activations_to_thirteen_bits(out: int, inner: int) -> None:
    weight = random(out, inner)
    x = random(1, inner, seed=1) * torch.rand(inner).pow(6) * 40  # a few channels outweigh the others
    exact = x.double() @ dequantized(weight).double().T
    found = Int8Weight(weight)(x)
    assert found.shape == (1, out)
    room = float(x.abs().max()) / 63 / 126 * dequantized(weight).abs().sum(dim=1).max()
    assert (found - exact).abs().max() <= room + 1e-5


@needs_int8
def test_int8_does_not_saturate() -> None:
    """The largest codes all along a row, of either sign."""
    weight = torch.ones(5, 1024)
    for sign in (1.0, -1.0):
        found = Int8Weight(weight)(torch.full((1, 1024), sign * 3.0))
        assert torch.allclose(found, torch.full((1, 5), sign * 3072.0), rtol=1e-5)


@needs_int8
def test_int8_rounds_what_lies_by_a_tie_as_what_is_left_over_says() -> None:
    below = float(np.nextafter(np.float32(1.5), np.float32(0)))  # plus the product's offset of 64 it is 65.5
    x = torch.tensor([[63.0, below]])
    assert Int8Weight(torch.tensor([[0.0, 1.0]]))(x)[0, 0] == pytest.approx(below, abs=0.01)


@needs_int8
def test_int8_of_nothing_and_of_what_is_not_finite() -> None:
    weight = Int8Weight(random(7, 33))
    assert torch.equal(weight(torch.zeros(1, 33)), torch.zeros(1, 7))
    assert torch.equal(Int8Weight(torch.zeros(3, 4))(torch.ones(1, 4)), torch.zeros(1, 3))
    for bad in (math.nan, math.inf, -math.inf):
        x = torch.zeros(1, 33)
        x[0, 5] = bad
        assert not weight(x).isfinite().any()


@needs_int8
def test_int8_leaves_its_input_alone_and_can_scale_its_output() -> None:
    weight, x = Int8Weight(random(8, 16)), random(16, seed=2).numpy()
    before = x.copy()
    once, twice = weight.product(x), weight.product(x, 2.0)
    assert np.array_equal(x, before)
    assert np.allclose(2 * once, twice)


@needs_int4
@pytest.mark.parametrize(("out", "inner"), [(16, 32), (48, 576), (64, 96), (80, 1536)])
def test_int4_multiplies_what_its_codes_stand_for(out: int, inner: int) -> None:
    weight = random(out, inner)
    codes, pairs = quantize_groups(weight)
    scale, middle = (each.T.repeat_interleave(32, dim=1) for each in pairs.float().unbind(dim=-1))
    stands_for = (codes - 8) * scale + middle  # [out, in]
    assert (stands_for - weight).abs().max() <= float(pairs[..., 0].max()) * 0.6
    x = random(1, inner, seed=1).bfloat16()
    found = Int4Weight(weight)(x).float()
    assert torch.allclose(found, x.float() @ stands_for.T, atol=0.02 * inner**0.5)


def test_int4_loses_nothing_of_four_bit_files() -> None:
    """Groups of 32 with sixteen levels, as Q4_1 keeps them, are found again."""
    levels = torch.randint(0, 16, (16, 2, 32), generator=torch.Generator().manual_seed(4))
    levels[..., 0], levels[..., 1] = 0, 15
    weight = (levels * 0.0625 - 0.375).view(16, 64)
    codes, _ = quantize_groups(weight)
    assert torch.equal(codes, levels.view(16, 64).int())


def test_a_shape_that_int4_does_not_take_stays_wider() -> None:
    assert not fits_int4(17, 64)
    assert not fits_int4(16, 33)
    odd = Projection(random(17, 33), torch.float32, torch.bfloat16, "int4")
    assert isinstance(odd.step, PlainWeight)
    found = odd.step(random(1, 33, seed=1).to(odd.step_dtype))
    assert found.dtype == torch.bfloat16


@needs_int8
@pytest.mark.parametrize("name", FAMILIES)
def test_the_int8_step_equals_the_plain_one_over_the_same_weights(
    name: str, family: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNEMOS_CACHE_DIR", str(tmp_path))
    config, weights, _, _ = load_directory(family(name).directory)
    fast, plain = Decoder(config, weights, step_format="int8"), Decoder(config, weights)
    for layer in plain.layers:
        for projection in (layer.qkv, layer.o, layer.gate_up, layer.down):
            projection.step = PlainWeight(dequantized(projection.weight))
    plain.lm_head.step = PlainWeight(dequantized(plain.lm_head.weight))
    tokens = torch.randint(3, 288, (60,), generator=torch.Generator().manual_seed(3)).tolist()
    prefix = encode_prefix(plain, tokens[:5])
    for temperature in (None, 1.0, 0.7):  # without memories, with plain ones, with weighed ones
        rows = []
        for decoder in (fast, plain):
            cache = decoder.new_cache(90)
            cache.k.fill_(torch.nan)
            cache.v.fill_(torch.nan)
            cache.load_prefix(prefix)
            if temperature is not None:
                cache.page_in(_spans(plain, prefix, tokens), temperature=temperature, mass_scale=0.8)
            decoder.prefill(tokens[5:30], cache)
            rows.append(torch.stack([decoder.forward([token], cache) for token in tokens[30:]]))
        assert (rows[0] - rows[1]).abs().max() < 2e-3 * rows[1].abs().max()


def _spans(decoder: Decoder, prefix: SpanKV, tokens: list[int]) -> list[SpanKV]:
    spans = []
    for first, count in ((7, 9), (20, 4)):
        cache = decoder.new_cache(prefix.tokens + count)
        cache.load_prefix(prefix)
        decoder.prefill(tokens[first : first + count], cache)
        spans.append(cache.snapshot(prefix.tokens, prefix.tokens + count))
    return spans


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_pair_of_formats_loads_and_stays_near(
    hf_directory: Path, cache: Path, dtype: str, weights: str
) -> None:
    if weights != "bf16" and not (has_int8() and has_int4()):
        pytest.skip("no kernels for it here")
    exact = load(hf_directory, dtype="fp32", decode_weights="bf16").decoder
    decoder = load(hf_directory, dtype=dtype, decode_weights=weights).decoder
    caches = [exact.new_cache(12), decoder.new_cache(12)]
    for token in (5, 9, 200, 17):
        a, b = (
            torch.softmax(d.forward([token], c), -1) for d, c in zip((exact, decoder), caches, strict=True)
        )
        assert (a - b).abs().sum() / 2 < (
            0.3 if weights == "int4" else 0.1
        )  # random weights fill 16 levels badly


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MNEMOS_DECODE_WEIGHTS", raising=False)
    assert pick_formats("fp32") == (torch.float32, torch.float32, "plain")
    assert pick_formats("auto")[2] == pick_format("auto") == ("int8" if has_int8() else "plain")
    assert pick_formats("fp32", "bf16")[1:] == (torch.bfloat16, "plain")
    monkeypatch.setenv("MNEMOS_DECODE_WEIGHTS", "bf16")
    assert pick_formats("auto")[1:] == (torch.bfloat16, "plain")
    with pytest.raises(UsageError, match="int7"):
        pick_formats("auto", "int7")
    with pytest.raises(UsageError, match="int8"):
        monkeypatch.setattr("mnemos.attention.step_weights.has_int8", lambda: False)
        pick_format("int8")
