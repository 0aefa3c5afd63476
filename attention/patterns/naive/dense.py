"""Full causal attention, token by token."""

from torch import Tensor

from mnemos.attention.patterns.dense import Dense
from mnemos.attention.patterns.mixer import Mixer
from mnemos.attention.patterns.naive.tokens import softmax_mix


def mix(mixer: Mixer, x: Tensor, positions: Tensor) -> Tensor:
    """The output for `x [batch, tokens, dim]`, by the mixer's weights."""
    assert isinstance(mixer, Dense)
    return softmax_mix(mixer.projections, x, positions, lambda rank, _: list(range(rank + 1)))
