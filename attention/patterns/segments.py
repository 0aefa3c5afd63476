"""Sequences in segments, each attending to itself and the one before (Transformer-XL, arXiv 1901.02860).

By rank: the nth token of a sequence that is there is of segment n // size, whatever its position.
"""

import torch
from torch import Tensor
from torch.nn import functional


def in_segments(states: Tensor, size: int) -> Tensor:
    """`[batch, heads, tokens, width]` to `[batch, segments, heads, size, width]`, zeros behind the tokens."""
    fill = -states.shape[2] % size
    return torch.unflatten(functional.pad(states, (0, 0, 0, fill)), 2, (-1, size)).transpose(1, 2)


def with_segment_before(segments: Tensor) -> Tensor:
    """`[batch, segments, heads, size, width]` to `[..., 2 * size, width]`; zeros before the first."""
    earlier = functional.pad(segments[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0))
    return torch.cat((earlier, segments), dim=3)


def in_tokens(segments: Tensor, tokens: int) -> Tensor:
    """`in_segments` undone: `[batch, segments, heads, size, width]` to `[batch, heads, tokens, width]`."""
    return segments.transpose(1, 2).flatten(2, 3)[:, :, :tokens]


def visible_in_segments(segments: int, size: int, device: torch.device) -> Tensor:
    """`[segments, size, 2 * size]`: tokens up to and with itself, from the start of the segment before."""
    row = torch.arange(size, device=device)[:, None]
    column = torch.arange(2 * size, device=device)
    number = torch.arange(segments, device=device)[:, None, None]
    return (column <= row + size) & ((column >= size) | (number > 0))


def visible_by_rank(queries: Tensor, keys: Tensor, size: int) -> Tensor:
    """The same for `queries [batch, tokens]` and `keys [batch, keys]`, ranks: `[batch, tokens, keys]`.

    -1 is the rank of padding. Nobody sees it, and it sees everything.
    """
    query, key = queries[..., None], keys[:, None]
    near = torch.div(key, size, rounding_mode="floor") >= torch.div(query, size, rounding_mode="floor") - 1
    return ((key <= query) & near & (key >= 0)) | (query < 0)


def packed_order(there: Tensor) -> Tensor:
    """Columns of `there [batch, columns]`, True ones first; others are cut off where no row needs them.

    One is left at least, for a row to be of something.
    """
    most = max(int(there.sum(dim=1).amax()), 1)
    return (~there).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]


def reorder(states: Tensor, order: Tensor, dim: int) -> Tensor:
    """`states` with its columns along `dim` in the order `[batch, columns]`."""
    shape = list(states.shape)
    shape[dim] = order.shape[1]
    index = order.view([len(order)] + [order.shape[1] if at == dim else 1 for at in range(1, states.dim())])
    return states.gather(dim, index.expand(shape))
