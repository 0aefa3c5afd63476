"""Attention by products of features.

There is no other package's FAVOR+ to compare with: performer-pytorch 1.1.4 imports distutils, which Python
3.12 no longer has, and its causal form wants a package that is built from source. FAVOR+ is held to what it
estimates instead.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mnemos.attention.patterns.causal_sums import causal_average
from mnemos.attention.patterns.dense import Dense
from mnemos.attention.patterns.favor import Favor, orthogonal_directions
from mnemos.attention.patterns.linear import Linear
from mnemos.attention.patterns.mixer import MixerConfig

SIZES: dict[str, Any] = {"dim": 16, "heads": 4, "kv_heads": 2, "head_dim": 8}


@torch.no_grad()
def test_the_softmax_is_estimated_the_better_the_more_features_there_are() -> None:
    torch.manual_seed(0)
    x, places = torch.randn(2, 100, 16) / 4, torch.arange(100).repeat(2, 1)  # large ones make long tails
    dense = Dense(MixerConfig(**SIZES))
    counts, errors = [32, 128, 512], []
    for features in counts:
        found = []
        for seed in range(5):
            mixer = Favor(MixerConfig(**SIZES, features=features, seed=seed))
            mixer.load_state_dict(dense.state_dict(), strict=False)
            found.append((mixer(x, places)[0] - dense(x, places)[0]).square().mean().sqrt())
        errors.append(float(torch.stack(found).mean()))
    slope = (math.log(errors[2]) - math.log(errors[0])) / (math.log(counts[2]) - math.log(counts[0]))
    assert -0.65 < slope < -0.35  # a mean over draws
    assert errors[2] < 0.05 * float(dense(x, places)[0].std())


def test_the_kernel_of_favor_is_unbiased() -> None:
    torch.manual_seed(0)
    w = orthogonal_directions(80_000, 8, seed=0)
    for q, k in torch.randn(10, 2, 8, dtype=torch.float64) / 4:
        of_q, of_k = ((w @ x - x.square().sum() / 2).exp() for x in (q, k))
        blocks = (of_q * of_k).view(-1, 8).mean(1)  # independent of one another
        error = float(blocks.mean()) - math.exp(float(q @ k))
        assert abs(error) < 4 * float(blocks.std()) / math.sqrt(len(blocks))


def test_directions_are_orthogonal_in_blocks_and_as_long_as_normal_vectors() -> None:
    directions = orthogonal_directions(20, 8, seed=3)
    assert directions.shape == (20, 8)
    for block in directions.split(8):
        products = block @ block.T
        torch.testing.assert_close(products, products.diag().diag())
    many = orthogonal_directions(4000, 8, seed=0)
    assert float(many.mean(0).abs().max()) < 4 / math.sqrt(4000)  # no direction is favoured
    lengths = many.square().sum(-1)
    assert abs(float(lengths.mean()) - 8) < 0.3
    assert abs(float(lengths.var()) - 16) < 3


def test_directions_can_be_drawn_anew() -> None:
    mixer, other = Favor(MixerConfig(**SIZES, seed=1)), Favor(MixerConfig(**SIZES, seed=2))
    assert not torch.equal(mixer.directions, other.directions)
    mixer.redraw(2)
    assert torch.equal(mixer.directions, other.directions)


@pytest.mark.parametrize("kind", [Linear, Favor])
@pytest.mark.parametrize("factor", [100.0, 1e-4])
def test_features_stay_finite_however_large_or_small_the_input(kind: type[Linear], factor: float) -> None:
    mixer = kind(MixerConfig(**SIZES))
    x = (torch.randn(1, 70, 16) * factor).requires_grad_()
    y, _ = mixer(x, torch.arange(70)[None])
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_a_state_is_a_matrix_a_head_however_long_the_sequence() -> None:
    mixer = Linear(MixerConfig(**SIZES))
    _, state = mixer(torch.randn(1, 300, 16), torch.arange(300)[None], mixer.initial_state(1))
    assert state is not None
    assert state.bytes() == 2 * 8 * 9 * 4  # KV heads, features, values and a one, fp32


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_an_average_does_not_depend_on_the_chunk(chunk: int) -> None:
    q, k, v = (torch.rand(1, heads, 50, 6, dtype=torch.float64) for heads in (4, 2, 2))

    def plain(q: Tensor, k: Tensor) -> Tensor:
        weights = (q @ k.repeat_interleave(2, 1).mT).tril()
        return weights @ v.repeat_interleave(2, 1) / weights.sum(-1, keepdim=True)

    torch.testing.assert_close(causal_average(q, k, v, chunk)[0], plain(q, k))
