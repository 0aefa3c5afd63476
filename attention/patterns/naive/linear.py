"""Linear attention with elu + 1, token by token."""

import torch
from torch import Tensor

from mnemos.attention.patterns.linear import Linear
from mnemos.attention.patterns.mixer import Mixer
from mnemos.attention.patterns.naive.tokens import weighted_mix


def mix(mixer: Mixer, x: Tensor, positions: Tensor) -> Tensor:
    """The output for `x [batch, tokens, dim]`, by the mixer's weights."""
    assert isinstance(mixer, Linear)

    def weights(q: Tensor, keys: Tensor) -> Tensor:
        return _feature(keys) @ _feature(q)

    return weighted_mix(mixer.projections, x, positions, weights)


def _feature(x: Tensor) -> Tensor:
    return torch.where(x > 0, x + 1, x.exp())
