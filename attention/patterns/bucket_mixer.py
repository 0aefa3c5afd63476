"""Patterns that sort tokens into buckets by content: a token attends to the last ones of its own bucket.

The papers of these patterns look at the whole sequence to choose who shares a chunk, later tokens included,
and mask those out afterwards; which earlier ones are left still tells of later ones. Here a bucket's last
tokens are taken, which costs the same and depends on no later token.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mnemos.attention.patterns.bucketed import attend_counted, attend_in_buckets, merge_rounds
from mnemos.attention.patterns.mixer import PADDING, Mixer, MixerConfig, MixerState, check_inputs, check_state
from mnemos.attention.patterns.packing import pack
from mnemos.attention.patterns.shared_qk import SharedQk


@dataclass(frozen=True, slots=True)
class BucketState(MixerState):
    """All tokens so far and their buckets."""

    positions: Tensor  # [batch, cached]
    k: Tensor  # [batch, heads, cached, key_dim]
    v: Tensor  # [batch, heads, cached, head_dim]
    codes: Tensor  # [batch, heads, rounds, cached] int64


@dataclass(frozen=True, slots=True)
class Level:
    """Tokens of the ranks [start, end) go by their codes modulo `buckets`."""

    start: int
    end: int
    buckets: int


class BucketMixer(Mixer):
    """What they share; a subclass says which bucket a token is in.

    Keys are queries, and nobody sees itself, unless it is alone.
    """

    width: int  # tokens of its bucket that a token sees, in each round
    rounds: int

    def __init__(self, config: MixerConfig) -> None:
        super().__init__(config)
        self.projections = SharedQk(config)

    @abstractmethod
    def codes(self, qk: Tensor, there: Tensor, whole: bool) -> Tensor:
        """`[batch, heads, rounds, tokens]` int64 for `qk [batch, heads, tokens, head_dim]`, without gradient.

        `there [batch, tokens]` is False for padding; `whole` says that these are whole sequences, not steps.
        """

    @abstractmethod
    def levels(self, tokens: int) -> Sequence[Level]:
        """All ranks below `tokens`, in their order."""

    def initial_state(self, batch: int) -> BucketState:
        weight, config = self.projections.query.weight, self.config
        places = torch.empty(batch, 0, dtype=torch.int64, device=weight.device)
        return BucketState(
            places,
            weight.new_empty(batch, config.heads, 0, self.projections.key_dim),
            weight.new_empty(batch, config.heads, 0, config.head_dim),
            places.new_empty(batch, config.heads, self.rounds, 0),
        )

    def forward(
        self, x: Tensor, positions: Tensor, state: MixerState | None = None
    ) -> tuple[Tensor, MixerState | None]:
        check_inputs(self.config, x, positions)
        if state is not None:
            return self._go_on(x, positions, check_state(state, BucketState, len(x)))
        packed = pack(x, positions)
        there = packed.positions != PADDING
        qk, v = self.projections.split(packed.x.masked_fill(~there[..., None], 0.0))
        codes = self.codes(qk.detach(), there, whole=True)
        q, k = self.projections.place(qk, packed.positions)
        mixed = [self._level(q, k, v, codes, level) for level in self.levels(x.shape[1])]
        y = self.projections.join(torch.cat(mixed, dim=2), packed.positions)
        return packed.restore(y), None

    def _level(self, q: Tensor, k: Tensor, v: Tensor, codes: Tensor, level: Level) -> Tensor:
        """[batch, heads, tokens of the level, head_dim]."""
        batch, heads, rounds = codes.shape[:3]
        buckets = (codes[..., : level.end] % level.buckets).flatten(0, 2)
        q, k, v = (part[:, :, : level.end] for part in (q, k, v))
        each_q, each_k, each_v = (
            part[:, :, None].expand(-1, -1, rounds, -1, -1).flatten(0, 2) for part in (q, k, v)
        )
        scale = self.projections.scale
        outs, totals = attend_in_buckets(each_q, each_k, each_v, buckets, self.width, scale)
        shown = slice(level.start, level.end)
        merged = merge_rounds(
            torch.unflatten(outs[:, shown], 0, (-1, rounds)),
            torch.unflatten(totals[:, shown], 0, (-1, rounds)),
            v[:, :, shown].flatten(0, 1),
        )
        return torch.unflatten(merged, 0, (batch, heads))

    def _go_on(self, x: Tensor, positions: Tensor, state: BucketState) -> tuple[Tensor, BucketState]:
        """In pieces, each against all tokens before: linear in those, as any step with a cache of all."""
        parts = []
        pieces = zip(
            torch.split(x, self.width, dim=1), torch.split(positions, self.width, dim=1), strict=True
        )
        for piece, places in pieces:
            there = places != PADDING
            qk, v = self.projections.split(piece.masked_fill(~there[..., None], 0.0))
            q, k = self.projections.place(qk, places)
            state = BucketState(
                torch.cat((state.positions, places), dim=1),
                torch.cat((state.k, k), dim=2),
                torch.cat((state.v, v), dim=2),
                torch.cat((state.codes, self.codes(qk.detach(), there, whole=False)), dim=3),
            )
            counts = self._counts(state, piece.shape[1])
            mixed = attend_counted(q, state.k, state.v, counts, self.projections.scale)
            parts.append(self.projections.join(mixed, places))
        return torch.cat(parts, dim=1), state

    def _counts(self, state: BucketState, tokens: int) -> Tensor:
        """How many rounds show the last `tokens` each of the keys, `[batch, heads, tokens, keys]`."""
        there = state.positions != PADDING
        rank = there.cumsum(dim=1) - 1
        level = torch.ones_like(rank[:, -tokens:])
        for one in self.levels(int(rank.amax()) + 1):
            level = torch.where(rank[:, -tokens:] >= one.start, one.buckets, level)
        level = level[:, None, None, :, None]
        same = state.codes[..., -tokens:, None] % level == state.codes[..., None, :] % level
        order = torch.arange(len(rank[0]), device=rank.device)
        before = (order < order[-tokens:, None]) & there[:, None]  # [batch, tokens, keys]
        same = same & before[:, None, None]
        from_here = same.flip(-1).cumsum(dim=-1).flip(-1)
        counts = (same & (from_here <= self.width)).sum(dim=2)
        own = order == order[-tokens:, None]
        return torch.where(own & (counts.sum(dim=-1, keepdim=True) == 0), 1, counts)

    def operations(self, tokens: int) -> int:
        """Chunks of `width` against twice as many keys, in each round."""
        chunks = sum(-(-level.end // self.width) for level in self.levels(tokens))
        pairs = chunks * 2 * self.width**2 * self.rounds * self.config.heads
        return pairs * (self.projections.key_dim + self.config.head_dim) + self._coding(tokens)

    @abstractmethod
    def _coding(self, tokens: int) -> int:
        """Multiply-adds of `codes`."""
