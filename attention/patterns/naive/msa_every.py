"""MSA in which every document reads, document by document and token by token."""

from torch import Tensor

from mnemos.attention.patterns.mixer import Mixer
from mnemos.attention.patterns.naive.msa import mix_routed


def mix(mixer: Mixer, x: Tensor, positions: Tensor) -> Tensor:
    """The output for `x [batch, tokens, dim]`, by the mixer's weights."""
    return mix_routed(mixer, x, positions)[0]
