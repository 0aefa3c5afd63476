"""A sliding window with attention sinks, token by token."""

from torch import Tensor

from mnemos.attention.patterns.mixer import Mixer
from mnemos.attention.patterns.naive.tokens import softmax_mix
from mnemos.attention.patterns.window import Window


def mix(mixer: Mixer, x: Tensor, positions: Tensor) -> Tensor:
    """The output for `x [batch, tokens, dim]`, by the mixer's weights."""
    assert isinstance(mixer, Window)
    config = mixer.config

    def keys_of(query: int, head: int) -> list[int]:
        return [key for key in range(query + 1) if key < config.sinks or query - key < config.window]

    return softmax_mix(mixer.projections, x, positions, keys_of)
