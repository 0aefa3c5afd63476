"""Window, random and global blocks (BigBird, arXiv 2007.14062), in causal form.

A block of queries attends to itself and the blocks right before it (as many as hold `window` tokens), to
the first `global_blocks`, and to `random_blocks` between those, drawn per KV head and block from the seed
alone: a draw depends on no token and not on the length, so reading on changes nothing that was read.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from mnemos.attention.patterns.mixer import (
    PADDING,
    Complexity,
    Mixer,
    MixerConfig,
    MixerState,
    check_inputs,
    check_state,
)
from mnemos.attention.patterns.packing import pack
from mnemos.attention.patterns.projections import Projections, attend
from mnemos.attention.patterns.registry import register


@dataclass(frozen=True, slots=True)
class BlockState(MixerState):
    """K and V of all tokens: a random block can be any. Left-aligned, without padding."""

    seen: Tensor  # [batch] int64: tokens so far, padding not counted
    k: Tensor  # [batch, kv_heads, most seen, key_dim]
    v: Tensor  # [batch, kv_heads, most seen, head_dim]


@register
class BigBird(Mixer):
    """Blocks near, blocks anywhere and the first blocks. State: K and V of all tokens."""

    name: ClassVar[str] = "bigbird"
    paper: ClassVar[str] = "arXiv 2007.14062"
    complexity: ClassVar[Complexity] = Complexity("O(n (w + r b + g b))", "O(n (w / b + r + g))", 1.0, 1.0)

    def __init__(self, config: MixerConfig) -> None:
        super().__init__(config)
        self.projections = Projections(config)
        self._before = -(-(config.window - 1) // config.block)  # blocks of the window, its own not counted
        self._reached = config.global_blocks + config.random_blocks + self._before + 1

    def initial_state(self, batch: int) -> BlockState:
        weight, config = self.projections.key.weight, self.config
        return BlockState(
            torch.zeros(batch, dtype=torch.int64, device=weight.device),
            weight.new_empty(batch, config.kv_heads, 0, self.projections.key_dim),
            weight.new_empty(batch, config.kv_heads, 0, config.head_dim),
        )

    def forward(
        self, x: Tensor, positions: Tensor, state: MixerState | None = None
    ) -> tuple[Tensor, MixerState | None]:
        check_inputs(self.config, x, positions)
        before = check_state(state, BlockState, len(x)) if state is not None else None
        packed = pack(x, positions)
        q, k, v = self.projections.split(packed.x, packed.positions)
        size, tokens = self.config.block, x.shape[1]
        place = torch.arange(tokens, device=x.device)
        if before is None:
            after = None
            first = torch.zeros(1, dtype=torch.int64, device=x.device)
            blocks = -(-tokens // size)
            queries = functional.pad(q, (0, 0, 0, blocks * size - tokens))
        else:
            after = _append(before, k, v, packed.positions)
            k, v = after.k, after.v
            first = before.seen // size
            blocks = (tokens + size - 2) // size + 1  # that any so many tokens in a row can touch
            place = (before.seen % size)[:, None, None, None] + place[:, None]
            queries = q.new_zeros(*q.shape[:2], blocks * size, q.shape[3]).scatter(2, place.expand_as(q), q)
        mixed = self._mix(queries, k, v, first[:, None] + torch.arange(blocks, device=x.device))
        if before is None:
            mixed = mixed[:, :, :tokens]
        else:
            mixed = mixed.gather(2, place.expand(*q.shape[:3], mixed.shape[3]))
        return packed.restore(self.projections.join(mixed, packed.positions)), after

    def _mix(self, queries: Tensor, k: Tensor, v: Tensor, numbers: Tensor) -> Tensor:
        """Blocks of queries, `numbers [batch or 1, blocks]` in the sequence, against those they reach."""
        size, batch, kv_heads = self.config.block, len(queries), self.config.kv_heads
        reached, there = self._reach(numbers)  # [batch or 1, kv_heads, blocks, reached]
        keys = -(-max(k.shape[2], 1) // size)
        row = torch.arange(batch * kv_heads, device=k.device).view(batch, kv_heads, 1, 1) * keys
        row = (row + reached.clamp(max=keys - 1)).flatten()

        def stretches(part: Tensor) -> Tensor:  # [batch * kv_heads * blocks, 1, reached * block, width]
            held = functional.pad(part, (0, 0, 0, keys * size - part.shape[2]))
            picked = held.reshape(batch * kv_heads * keys, -1).index_select(0, row)
            return picked.view(-1, 1, self._reached * size, part.shape[3])

        # [batch * kv_heads * blocks, group, block, key_dim]
        rows = queries.view(batch, kv_heads, -1, numbers.shape[1], size, queries.shape[3])
        rows = rows.transpose(2, 3).flatten(0, 2)
        visible = there[..., None, :, None].repeat(1, 1, 1, size, 1, size)
        visible[..., -1, :] = torch.ones(size, size, dtype=torch.bool, device=k.device).tril()
        visible = visible.flatten(4).expand(batch, -1, -1, -1, -1).flatten(0, 2)
        mixed = attend(rows, stretches(k), stretches(v), self.projections.scale, visible)
        return torch.unflatten(mixed, 0, (batch, kv_heads, -1)).transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def _reach(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """The blocks that each block attends to, its own last, and which of those there are."""
        config = self.config
        own = numbers[:, None, :, None].expand(-1, config.kv_heads, -1, -1)
        near = own - torch.arange(self._before, -1, -1, device=own.device)
        far = torch.arange(config.global_blocks, device=own.device).expand(*own.shape[:3], -1)
        drawn, is_drawn = self._draw(own[..., 0])
        reached = torch.cat((far, drawn, near), dim=-1)
        there = torch.cat((far < own - self._before, is_drawn, near >= 0), dim=-1)
        return reached.clamp(min=0), there

    def _draw(self, own: Tensor) -> tuple[Tensor, Tensor]:
        """Distinct random blocks (Floyd's sampling) between the first and the near ones, and which there are.

        `own [..., kv_heads, blocks]`; returns [..., kv_heads, blocks, random_blocks] twice.
        """
        config, wanted = self.config, self.config.random_blocks
        head = torch.arange(config.kv_heads, device=own.device)[:, None]
        count = (own - self._before - config.global_blocks).clamp(min=0)  # blocks to choose from
        drawn = own.new_full((*own.shape, wanted), -1)
        for slot in range(wanted):
            last = (count - wanted + slot).clamp(min=slot)
            choice = scrambled(((config.seed * 31 + head) * 31 + slot) * 1_000_003 + own) % (last + 1)
            taken = (drawn[..., :slot] == choice[..., None]).any(-1)
            drawn[..., slot] = torch.where(taken, last, choice)
        is_drawn = torch.arange(wanted, device=own.device) < count[..., None]
        few = (count <= wanted)[..., None]  # then all of them
        drawn = torch.where(few, torch.arange(wanted, device=own.device), drawn)
        return config.global_blocks + drawn, is_drawn

    def operations(self, tokens: int) -> int:
        pairs = -(-tokens // self.config.block) * self.config.block * self._reached * self.config.block
        return pairs * self.config.heads * 2 * self.projections.key_dim


def scrambled(numbers: Tensor) -> Tensor:
    """A well-mixed 32-bit number for each int64 (an integer hash; the same on every device)."""
    mixed = numbers & 0xFFFFFFFF
    for _ in range(2):
        mixed = ((mixed ^ (mixed >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return mixed ^ (mixed >> 16)


def _append(before: BlockState, k: Tensor, v: Tensor, positions: Tensor) -> BlockState:
    """The state after packed tokens, each row's right behind its own."""
    seen = before.seen + (positions != PADDING).sum(1)
    place = (before.seen[:, None] + torch.arange(k.shape[2], device=k.device))[:, None, :, None]
    parts = []
    for held, new in ((before.k, k), (before.v, v)):
        longer = functional.pad(held, (0, 0, 0, new.shape[2])).scatter(
            2, place.expand_as(new), new.to(held.dtype)
        )
        parts.append(longer[:, :, : int(seen.max())])
    return BlockState(seen, parts[0], parts[1])
