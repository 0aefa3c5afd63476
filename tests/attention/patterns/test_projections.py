"""Positions in queries and keys, and the fused attention, against what they stand for."""

import pytest
import torch
from torch.nn import functional

from mnemos.attention.patterns import projections
from mnemos.attention.patterns.projections import alibi_slopes, attend, rotate, with_alibi
from mnemos.attention.rope import Rotary, base_frequencies


def test_rotation_is_the_decoders() -> None:
    x = torch.randn(1, 3, 50, 8)
    factors = Rotary(base_frequencies(8, 500.0), 1.0, 64).span(0, 50)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    expected = torch.view_as_real(pairs * factors).flatten(-2)
    torch.testing.assert_close(rotate(x, torch.arange(50)[None], 500.0), expected)


def test_slopes_are_those_of_the_paper() -> None:
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(6).tolist() == [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_alibi_in_keys_tells_neighbours_apart_at_any_position(dtype: torch.dtype) -> None:
    positions = torch.tensor([[0, 255, 256, 65_535, 65_536, 1_000_000, 1_000_001]])
    nothing = torch.zeros(1, 4, 7, 8, dtype=dtype)
    q, k = with_alibi(nothing, nothing[:, :2], positions, scale=0.25)
    bias = (q[:, :2].double() @ k.double().mT * 0.25)[0]
    slopes = alibi_slopes(4)[:2, None, None]
    torch.testing.assert_close(bias, (slopes * positions[0]).expand(2, 7, 7))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("key_dim", [8, 16])
def test_attend_is_a_softmax_over_what_is_visible(causal: bool, key_dim: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 6, 33, key_dim), torch.randn(3, 2, 33, key_dim), torch.randn(3, 2, 33, 8)
    visible = torch.ones(33, 33).tril().bool() if causal else torch.rand(3, 33, 33) < 0.3
    visible = visible | torch.eye(33, dtype=torch.bool)
    scores = q @ k.repeat_interleave(3, 1).mT * 0.3
    weights = scores.masked_fill(~visible.view(-1, 1, 33, 33), -torch.inf).softmax(-1)
    mixed = attend(q, k, v, 0.3, None if causal else visible)
    torch.testing.assert_close(mixed, weights @ v.repeat_interleave(3, 1))


def test_more_sequences_than_a_kernel_takes_go_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k = torch.randn(7, 2, 5, 4), torch.randn(7, 1, 5, 4)
    visible = torch.ones(7, 5, 5).tril().bool()
    whole = attend(q, k, k, 0.5), attend(q, k, k, 0.5, visible), attend(q, k, k, 0.5, visible[:1])
    monkeypatch.setattr(projections, "_MOST_SEQUENCES", 3)
    calls = []

    def counted(*args: object, **options: object) -> torch.Tensor:
        calls.append(args)
        return real(*args, **options)

    real = functional.scaled_dot_product_attention
    monkeypatch.setattr(functional, "scaled_dot_product_attention", counted)
    parts = attend(q, k, k, 0.5), attend(q, k, k, 0.5, visible), attend(q, k, k, 0.5, visible[:1])
    assert len(calls) == 9
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other)
