"""FAVOR+, token by token."""

import math

from torch import Tensor

from mnemos.attention.patterns.favor import LEAST, Favor
from mnemos.attention.patterns.mixer import Mixer
from mnemos.attention.patterns.naive.tokens import weighted_mix


def mix(mixer: Mixer, x: Tensor, positions: Tensor) -> Tensor:
    """The output for `x [batch, tokens, dim]`, by the mixer's weights and directions.

    Equal while no exponential leaves its range.
    """
    assert isinstance(mixer, Favor)
    directions = mixer.directions

    def features(x: Tensor) -> Tensor:
        x = x / math.sqrt(math.sqrt(mixer.config.head_dim))
        return (x @ directions.T).exp() * (-(x**2).sum(-1, keepdim=True) / 2).exp()

    def weights(q: Tensor, keys: Tensor) -> Tensor:
        of_query = features(q)
        return (features(keys) + LEAST) @ (of_query / of_query.max().detach() + LEAST)

    return weighted_mix(mixer.projections, x, positions, weights)
