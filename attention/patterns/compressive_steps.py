"""The Compressive Transformer step by step: two segments as they are, and slots of what is older."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mnemos.attention.patterns.mixer import PADDING, MixerState
from mnemos.attention.patterns.projections import Projections, attend
from mnemos.attention.patterns.segments import packed_order, reorder, visible_by_rank

Compress = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""x `[batch, tokens, dim]` and positions to K and V of its slots."""


@dataclass(frozen=True, slots=True)
class CompressiveState(MixerState):
    """The tokens of the last two segments, and slots of older ones."""

    seen: Tensor  # [batch] int64: tokens so far
    ranks: Tensor  # [batch, kept]; -1 where there is none, behind the others
    positions: Tensor  # [batch, kept]
    x: Tensor  # [batch, kept, dim]
    k: Tensor  # [batch, kv_heads, kept, key_dim]
    v: Tensor  # [batch, kv_heads, kept, head_dim]
    slots: Tensor  # [batch, slots]: their numbers, rising; -1 where there is none, before the others
    slot_k: Tensor  # [batch, kv_heads, slots, key_dim]
    slot_v: Tensor  # [batch, kv_heads, slots, head_dim]


def no_tokens(projections: Projections, batch: int) -> CompressiveState:
    """The state before the first token."""
    weight, config = projections.key.weight, projections.config
    none = torch.empty(batch, 0, dtype=torch.int64, device=weight.device)
    slots = config.compressed + config.segment // config.compression
    k = weight.new_zeros(batch, config.kv_heads, slots, projections.key_dim)
    v = weight.new_zeros(batch, config.kv_heads, slots, config.head_dim)
    x = weight.new_empty(batch, 0, config.dim)
    numbers = none.new_full((batch, slots), -1)
    return CompressiveState(none.new_zeros(batch), none, none, x, k[:, :, :0], v[:, :, :0], numbers, k, v)


def go_on(
    projections: Projections, compress: Compress, x: Tensor, positions: Tensor, state: CompressiveState
) -> tuple[Tensor, CompressiveState]:
    """Up to a segment of tokens more: [batch, heads, tokens, head_dim], and the state after them."""
    config, size = projections.config, projections.config.segment
    there = positions != PADDING
    x = x.masked_fill(~there[..., None], 0.0)
    q, k, v = projections.split(x, positions)
    ranks = torch.where(there, state.seen[:, None] + there.cumsum(dim=1) - 1, -1)
    state = _append(state, ranks, positions, x, k, v)
    # Ranks below are compressed for the newest token. They grow by a segment at most, which stands first.
    older = ((state.seen - 1).clamp_min(0) // size - 1) * size  # [batch]
    full = ((state.ranks >= 0) & (state.ranks < older[:, None])).any(dim=1)
    if bool(full.any()):
        slots = compress(state.x[:, :size], state.positions[:, :size])
        numbers = state.ranks[:, : size : config.compression] // config.compression
        state = _shift(state, full, numbers, *slots)
    before = (torch.div(ranks, size, rounding_mode="floor") - 1) * (size // config.compression)
    number, before = state.slots[:, None], before[..., None]
    seen = (number >= 0) & (number < before) & (number >= before - config.compressed)
    mixed = attend(
        q,
        torch.cat((state.slot_k, state.k), dim=2),
        torch.cat((state.slot_v, state.v), dim=2),
        projections.scale,
        torch.cat((seen, visible_by_rank(ranks, state.ranks, size)), dim=2),
    )
    return mixed, _keep(state, (state.ranks >= 0) & (state.ranks >= older[:, None]))


def _append(
    state: CompressiveState, ranks: Tensor, positions: Tensor, x: Tensor, k: Tensor, v: Tensor
) -> CompressiveState:
    longer = replace(
        state,
        seen=state.seen + (ranks >= 0).sum(dim=1),
        ranks=torch.cat((state.ranks, ranks), dim=1),
        positions=torch.cat((state.positions, positions), dim=1),
        x=torch.cat((state.x, x), dim=1),
        k=torch.cat((state.k, k), dim=2),
        v=torch.cat((state.v, v), dim=2),
    )
    return _keep(longer, longer.ranks >= 0)


def _keep(state: CompressiveState, kept: Tensor) -> CompressiveState:
    """Those of its tokens, `[batch, kept]`, closed up."""
    order = packed_order(kept)
    behind = ~kept.gather(1, order)
    return replace(
        state,
        ranks=reorder(state.ranks, order, 1).masked_fill(behind, -1),
        positions=reorder(state.positions, order, 1),
        x=reorder(state.x, order, 1),
        k=reorder(state.k, order, 2),
        v=reorder(state.v, order, 2),
    )


def _shift(state: CompressiveState, rows: Tensor, numbers: Tensor, k: Tensor, v: Tensor) -> CompressiveState:
    """New slots behind, as many of the oldest gone, in the rows chosen."""
    many = numbers.shape[1]
    slots, slot_k, slot_v = (
        torch.where(
            rows.view([-1] + [1] * (old.dim() - 1)),
            torch.cat((old.narrow(d, many, old.shape[d] - many), new), d),
            old,
        )
        for old, new, d in ((state.slots, numbers, 1), (state.slot_k, k, 2), (state.slot_v, v, 2))
    )
    return replace(state, slots=slots, slot_k=slot_k, slot_v=slot_v)
