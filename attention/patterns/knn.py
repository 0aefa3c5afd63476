"""The Memorizing Transformer (arXiv 2203.08913): near tokens, and the nearest keys of what is further away.

A token attends to its segment of `window` tokens so far and to the segment before. Of everything older, faiss
finds the `neighbours` keys with the largest product with its query, for each head; a gate of each head weighs
the softmax over those against the near part. Memory has no positions. What is found gets no gradient, neither
its keys nor its values; queries and gates do.

The search is exact, one matrix product that keeps no scores, so its operations grow with n^2 while memory
grows with n; the backward pass is linear in n, and gathers what was found again instead of keeping it.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mnemos.attention.patterns.knn_steps import KnnState, append, find, near
from mnemos.attention.patterns.mixer import (
    PADDING,
    Complexity,
    Mixer,
    MixerConfig,
    MixerState,
    check_inputs,
    check_state,
)
from mnemos.attention.patterns.neighbours import for_search, nearest, read_neighbours
from mnemos.attention.patterns.packing import pack
from mnemos.attention.patterns.projections import Projections, attend
from mnemos.attention.patterns.registry import register
from mnemos.attention.patterns.segments import (
    in_segments,
    in_tokens,
    visible_in_segments,
    with_segment_before,
)

_READ_TOGETHER = 256  # tokens: bounds what is gathered at a time


@register
class Knn(Mixer):
    """Near tokens and nearest neighbours. State: all values, and keys with and without positions."""

    name: ClassVar[str] = "knn"
    paper: ClassVar[str] = "arXiv 2203.08913"
    complexity: ClassVar[Complexity] = Complexity("O(n^2)", "O(n k)", 2.0, 1.0)

    def __init__(self, config: MixerConfig) -> None:
        super().__init__(config)
        self.projections = Projections(config)
        self.gate = nn.Parameter(torch.zeros(config.heads))  # the sigmoid of it is the share of memory

    def initial_state(self, batch: int) -> KnnState:
        weight, config = self.projections.key.weight, self.config
        raw = weight.new_empty(batch, config.kv_heads, 0, config.head_dim)
        k = weight.new_empty(batch, config.kv_heads, 0, self.projections.key_dim)
        return KnnState(torch.empty(batch, 0, dtype=torch.int64, device=weight.device), raw, k, raw)

    def forward(
        self, x: Tensor, positions: Tensor, state: MixerState | None = None
    ) -> tuple[Tensor, MixerState | None]:
        check_inputs(self.config, x, positions)
        if state is None:
            packed = pack(x, positions)
            mixed = self._at_once(packed.x, packed.positions)
            return packed.restore(self.projections.join(mixed, packed.positions)), None
        after, parts = check_state(state, KnnState, len(x)), []
        size = self.config.window
        pieces = zip(torch.split(x, size, dim=1), torch.split(positions, size, dim=1), strict=True)
        for piece, places in pieces:
            raw, k, v = self._split(piece, places)
            after, ranks = append(after, places, raw[1], k[1], v)
            near_k, near_v, visible = near(after, ranks, size)
            local = attend(k[0], near_k, near_v, self.projections.scale, visible)
            found = find(after, raw[0], ranks, size, self.config.neighbours)
            read = read_neighbours(raw[0], after.raw, after.v, found, self.projections.scale)
            parts.append(self.projections.join(self._gated(local, read, found), places))
        return torch.cat(parts, dim=1), after

    def _split(
        self, x: Tensor, positions: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Tensor]:
        """q and k without positions, with positions, and v."""
        x = x.masked_fill((positions == PADDING)[..., None], 0.0)
        q, k, v = self.projections.heads_of(x)
        return (q, k), self.projections.place(q, k, positions), v

    def _at_once(self, x: Tensor, positions: Tensor) -> Tensor:
        """[batch, heads, tokens, head_dim] of packed tokens."""
        size, (batch, tokens) = self.config.window, positions.shape
        raw, placed, v = self._split(x, positions)
        queries = in_segments(placed[0], size)
        keys, values = (with_segment_before(in_segments(part, size)) for part in (placed[1], v))
        segments = queries.shape[1]
        visible = visible_in_segments(segments, size, x.device).repeat(batch, 1, 1)
        local = attend(
            queries.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1), self.projections.scale, visible
        )
        local = in_tokens(torch.unflatten(local, 0, (batch, segments)), tokens)
        if segments < 3:
            return local
        found = self._search(*raw)
        first = local[:, :, : 2 * size]
        rest = zip(
            *(torch.split(part[:, :, 2 * size :], _READ_TOGETHER, dim=2) for part in (local, raw[0], found)),
            strict=True,
        )
        parts = []
        for part, q, among in rest:
            given = (q, raw[1].detach(), v.detach(), among, self.projections.scale)
            if torch.is_grad_enabled():
                read = checkpoint(read_neighbours, *given, use_reentrant=False, preserve_rng_state=False)
            else:
                read = read_neighbours(*given)
            parts.append(self._gated(part, read, among))
        return torch.cat((first, *parts), dim=2)

    def _search(self, q: Tensor, k: Tensor) -> Tensor:
        """The neighbours of each token, [batch, heads, tokens, neighbours], -1 for none."""
        size, count = self.config.window, self.config.neighbours
        asking, held = for_search(q), for_search(k)
        found = torch.full((*q.shape[:3], count), -1)
        for row in range(len(q)):
            for start in range(2 * size, q.shape[2], size):
                end, known = min(start + size, q.shape[2]), start - size
                found[row, :, start:end] = nearest(asking[row, :, start:end], held[row, :, :known], count)
        return found.to(q.device)

    def _gated(self, local: Tensor, read: Tensor, found: Tensor) -> Tensor:
        share = self.gate.sigmoid()[:, None, None].to(local) * (found[..., :1] >= 0)
        return local + share * (read - local)

    def operations(self, tokens: int) -> int:
        size, config = self.config.window, self.config
        segments = -(-tokens // size)
        pairs = segments * size * 2 * size * self.projections.key_dim
        pairs += max(tokens - 2 * size, 0) * config.neighbours * config.head_dim
        return pairs * 2 * config.heads + self.search_operations(tokens)

    def search_operations(self, tokens: int) -> int:
        """Those that faiss does of them."""
        size = self.config.window
        pairs = sum(min(size, tokens - start) * (start - size) for start in range(2 * size, tokens, size))
        return pairs * self.config.heads * self.config.head_dim
