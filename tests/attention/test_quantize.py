import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mnemos.attention.quantize import (
    dequantize_keys,
    dequantize_values,
    pack_nibbles,
    quantize_keys,
    quantize_values,
    token_groups,
    unpack_nibbles,
)

SIZES = [1, 15, 16, 31, 32, 33, 47, 48, 63, 65, 97]


@given(st.integers(1, 2000))
def test_token_groups_cover_all_tokens_with_no_small_remainder(tokens: int) -> None:
    sizes = token_groups(tokens)
    assert sum(sizes) == tokens
    assert all(32 <= size <= 47 for size in sizes[:-1])
    assert sizes[-1] >= min(tokens, 16)


@given(st.integers(0, 2**32 - 1), st.sampled_from(SIZES))
def test_nibbles_round_trip(seed: int, tokens: int) -> None:
    codes = torch.randint(0, 16, (tokens, 64), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    assert torch.equal(unpack_nibbles(pack_nibbles(codes)), codes)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("tokens", SIZES)
def test_error_is_at_most_half_a_step(tokens: int, bits: int) -> None:
    """Each value lies within half a step of its group's grid, plus what fp16 scales and minima lose."""
    torch.manual_seed(tokens)
    x = torch.randn(2, 3, tokens, 64) * torch.linspace(0.1, 5, 64)
    steps = 2**bits - 1
    for quantize, dequantize, dims in (
        (quantize_keys, dequantize_keys, "keys"),
        (quantize_values, dequantize_values, "values"),
    ):
        codes, scales = quantize(x, bits)  # type: ignore[arg-type]
        out = torch.full_like(x, torch.nan)
        dequantize(codes, scales, out)
        step = scales[0].float()
        if dims == "keys":
            sizes = torch.tensor(token_groups(tokens))
            step = step.repeat_interleave(sizes, dim=-2)
        else:
            step = step.repeat_interleave(32, dim=-1)
        slack = 2e-3 * x.abs().amax() + step * steps * 1e-3
        assert ((out - x).abs() <= step / 2 + slack).all()


def test_a_constant_group_comes_back_as_it_was() -> None:
    x = torch.full((1, 1, 20, 64), 1.5)
    out = torch.full_like(x, torch.nan)
    dequantize_keys(*quantize_keys(x, 4), out)
    assert torch.equal(out, x)
    dequantize_values(*quantize_values(x, 4), out)
    assert torch.equal(out, x)


def test_int8_is_much_closer_than_int4() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 1, 64, 64)
    errors = {}
    for bits in (4, 8):
        out = torch.full_like(x, torch.nan)
        dequantize_keys(*quantize_keys(x, bits), out)  # type: ignore[arg-type]
        errors[bits] = (out - x).pow(2).mean().sqrt()
    assert errors[8] * 8 < errors[4]
