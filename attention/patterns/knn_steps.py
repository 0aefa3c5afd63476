"""The Memorizing Transformer step by step: of all keys and values, near ones and neighbours are read."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mnemos.attention.patterns.mixer import PADDING, MixerState
from mnemos.attention.patterns.neighbours import for_search, nearest
from mnemos.attention.patterns.segments import packed_order, reorder, visible_by_rank


@dataclass(frozen=True, slots=True)
class KnnState(MixerState):
    """All tokens that are there, a column for each rank; padding behind them."""

    positions: Tensor  # [batch, cached]
    raw: Tensor  # [batch, kv_heads, cached, head_dim]: keys without positions
    k: Tensor  # [batch, kv_heads, cached, key_dim]
    v: Tensor  # [batch, kv_heads, cached, head_dim]


def append(state: KnnState, positions: Tensor, raw: Tensor, k: Tensor, v: Tensor) -> tuple[KnnState, Tensor]:
    """The state with more tokens, and their ranks `[batch, tokens]`, -1 for padding."""
    there = positions != PADDING
    before = (state.positions != PADDING).sum(dim=1, keepdim=True)
    ranks = torch.where(there, before + there.cumsum(dim=1) - 1, -1)
    places = torch.cat((state.positions, positions), dim=1)
    order = packed_order(places != PADDING)
    longer = KnnState(
        reorder(places, order, 1),
        *(
            reorder(torch.cat(pair, dim=2), order, 2)
            for pair in ((state.raw, raw), (state.k, k), (state.v, v))
        ),
    )
    return longer, ranks


def near(state: KnnState, ranks: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """K and V that tokens of `ranks [batch, tokens]`, at most `size` of them, have near, and which see which.

    `[batch, kv_heads, keys, ...]` twice, and `[batch, tokens, keys]`.
    """
    cached = (state.positions != PADDING).sum(dim=1, keepdim=True)
    begin = torch.where(ranks >= 0, ranks, cached).amin(dim=1, keepdim=True)  # the first that is there
    begin = (torch.div(begin, size, rounding_mode="floor") - 1).clamp_min(0) * size
    columns = begin + torch.arange(3 * size, device=ranks.device)
    held = torch.where(columns < cached, columns, -1)
    columns = columns.clamp_max(max(state.k.shape[2] - 1, 0))
    visible = visible_by_rank(ranks, held, size)
    return reorder(state.k, columns, 2), reorder(state.v, columns, 2), visible


def find(state: KnnState, queries: Tensor, ranks: Tensor, size: int, count: int) -> Tensor:
    """Neighbours of `queries [batch, heads, tokens, head_dim]`, `[batch, heads, tokens, count]`."""
    found = torch.full((*queries.shape[:3], count), -1)
    asking, held = for_search(queries), for_search(state.raw)
    for row, segments in enumerate((torch.div(ranks, size, rounding_mode="floor")).tolist()):
        for segment in set(segments):
            known = (segment - 1) * size
            if known > 0:
                tokens = [index for index, one in enumerate(segments) if one == segment]
                found[row, :, tokens] = nearest(
                    asking[row, :, tokens], held[row, :, :known].contiguous(), count
                )
    return found.to(queries.device)
