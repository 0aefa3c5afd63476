"""The Compressive Transformer, token by token."""

import torch
from torch import Tensor

from mnemos.attention.patterns.compressive import Compressive
from mnemos.attention.patterns.mixer import PADDING, Mixer
from mnemos.attention.patterns.naive.tokens import Tokens, each_head, real_tokens, scores


def mix(mixer: Mixer, x: Tensor, positions: Tensor) -> Tensor:
    """The output for `x [batch, tokens, dim]`, by the mixer's weights."""
    assert isinstance(mixer, Compressive)
    rows = [_row(mixer, x[row], positions[row]) for row in range(len(x))]
    return torch.cat(rows)


def _row(mixer: Compressive, x: Tensor, positions: Tensor) -> Tensor:
    config = mixer.config
    slots = _slots(mixer, x, positions)

    def head_of(tokens: Tokens, query: int, head: int) -> Tensor:
        segment = query // config.segment
        near = list(range(max(segment - 1, 0) * config.segment, query + 1))
        # One list of keys: slots behind the tokens.
        both = Tokens(
            tokens.indices + slots.indices,
            tokens.positions + slots.positions,
            tokens.q,
            torch.cat((tokens.k, slots.k)),
            torch.cat((tokens.v, slots.v)),
        )
        older = max(segment - 1, 0) * config.segment // config.compression
        far = [len(tokens) + slot for slot in range(max(older - config.compressed, 0), older)]
        keys = far + near
        return scores(config, both, query, keys, head).softmax(0) @ both.v[keys, head]

    return each_head(mixer.projections, x[None], positions[None], head_of)


def _slots(mixer: Compressive, x: Tensor, positions: Tensor) -> Tokens:
    """All whole slots of one sequence, as tokens."""
    size = mixer.config.compression
    there = [index for index, position in enumerate(positions.tolist()) if position != PADDING]
    groups = [there[start : start + size] for start in range(0, len(there) - size + 1, size)]
    values = [mixer.convolution @ torch.cat([x[index] for index in group]) for group in groups]
    last = positions[[group[-1] for group in groups]]
    return real_tokens(mixer.projections, torch.stack(values) if values else x[:0], last)
