"""The Compressive Transformer (arXiv 1911.05507): the segment before as it is, older ones compressed.

A token attends to its segment so far, to the whole segment before, and to the last `compressed` slots of what
is older. A slot is a strided convolution over `compression` inputs of the layer, and stands where the last of
them does; it starts as their mean. Everything in one call is one graph, so the loss of the model trains the
convolution too (the paper's "BPTT" compression). The attention-reconstruction loss of the paper is
`reconstruction_loss`; it trains the convolution and nothing else.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from mnemos.attention.patterns.compressive_steps import CompressiveState, go_on, no_tokens
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
from mnemos.attention.patterns.segments import (
    in_segments,
    in_tokens,
    visible_in_segments,
    with_segment_before,
)


@register
class Compressive(Mixer):
    """Segments and compressed memory. State: two segments, and the slots."""

    name: ClassVar[str] = "compressive"
    paper: ClassVar[str] = "arXiv 1911.05507"
    complexity: ClassVar[Complexity] = Complexity("O(n (s + m))", "O(n (s + m) / s)", 1.0, 1.0)

    def __init__(self, config: MixerConfig) -> None:
        super().__init__(config)
        if config.segment % config.compression:
            raise ValueError(
                f"segment ({config.segment}) must be a multiple of compression ({config.compression})"
            )
        self.projections = Projections(config)
        mean = torch.eye(config.dim).repeat(1, config.compression) / config.compression
        self.convolution = nn.Parameter(mean)  # [dim, compression * dim]
        self.per_segment = config.segment // config.compression  # slots

    def initial_state(self, batch: int) -> CompressiveState:
        return no_tokens(self.projections, batch)

    def compress(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """K and V `[batch, kv_heads, slots, ...]` of x `[batch, slots * compression, dim]`."""
        groups = torch.unflatten(x, 1, (-1, self.config.compression)).flatten(2)
        slots = functional.linear(groups, self.convolution)
        last = positions[:, self.config.compression - 1 :: self.config.compression]
        return self.projections.split(slots, last)[1:]

    def forward(
        self, x: Tensor, positions: Tensor, state: MixerState | None = None
    ) -> tuple[Tensor, MixerState | None]:
        check_inputs(self.config, x, positions)
        if state is None:
            packed = pack(x, positions)
            mixed = self._at_once(packed.x, packed.positions)
            return packed.restore(self.projections.join(mixed, packed.positions)), None
        after, parts = check_state(state, CompressiveState, len(x)), []
        size = self.config.segment
        pieces = zip(torch.split(x, size, dim=1), torch.split(positions, size, dim=1), strict=True)
        for piece, places in pieces:
            mixed, after = go_on(self.projections, self.compress, piece, places, after)
            parts.append(self.projections.join(mixed, places))
        return torch.cat(parts, dim=1), after

    def _at_once(self, x: Tensor, positions: Tensor) -> Tensor:
        """[batch, heads, tokens, head_dim] of packed tokens."""
        config, (batch, tokens) = self.config, positions.shape
        there = positions != PADDING
        x = x.masked_fill(~there[..., None], 0.0)
        q, k, v = self.projections.split(x, positions)
        queries = in_segments(q, config.segment)
        segments = queries.shape[1]
        keys, values = (with_segment_before(in_segments(part, config.segment)) for part in (k, v))
        visible = visible_in_segments(segments, config.segment, x.device)
        older = (segments - 2) * config.segment  # tokens that anyone sees compressed
        if older > 0:
            slots = [
                self._spread(part, segments) for part in self.compress(x[:, :older], positions[:, :older])
            ]
            keys, values = torch.cat((slots[0], keys), dim=3), torch.cat((slots[1], values), dim=3)
            row = torch.arange(segments, device=x.device)[:, None] * self.per_segment
            number = row + torch.arange(config.compressed, device=x.device)
            filled = number >= config.compressed + self.per_segment  # [segments, compressed]
            visible = torch.cat((filled[:, None].expand(-1, config.segment, -1), visible), dim=2)
        mixed = attend(
            queries.flatten(0, 1),
            keys.flatten(0, 1),
            values.flatten(0, 1),
            self.projections.scale,
            visible.repeat(batch, 1, 1),
        )
        return in_tokens(torch.unflatten(mixed, 0, (batch, segments)), tokens)

    def _spread(self, slots: Tensor, segments: int) -> Tensor:
        """[batch, kv_heads, slots, width] to those that each segment reads, [batch, segments, kv_heads, ...].

        Slots of segment s are read from s + 2 on.
        """
        padded = functional.pad(slots, (0, 0, self.config.compressed + self.per_segment, 0))
        return padded.unfold(2, self.config.compressed, self.per_segment).permute(0, 2, 1, 4, 3)

    def operations(self, tokens: int) -> int:
        """Scores and sums, and the convolution; not the maps of its slots."""
        config = self.config
        segments = -(-tokens // config.segment)
        older = max(segments - 2, 0) * self.per_segment  # slots
        keys = 2 * config.segment + (config.compressed if older else 0)
        pairs = segments * config.segment * keys
        convolution = older * config.compression * config.dim**2
        return pairs * config.heads * 2 * self.projections.key_dim + convolution

    def reconstruction_loss(self, x: Tensor, positions: Tensor) -> Tensor:
        """How far what later tokens read of a segment moves when it is compressed: a mean square, a scalar.

        By content alone, without positions; queries are those of the segment that is the first to see it
        compressed. Its gradient is that of `convolution` alone. Zero where there are less than three
        segments.
        """
        check_inputs(self.config, x, positions)
        config, maps = self.config, self.projections
        packed = pack(x.detach(), positions)
        there = packed.positions != PADDING
        x = packed.x.masked_fill(~there[..., None], 0.0)
        segments = in_segments(x[:, None], config.segment)[:, :, 0]  # [batch, segments, size, dim]
        asked = in_segments(there[:, None, :, None], config.segment)[:, 2:, 0, :, 0]  # [batch, later, size]
        if not bool(asked.any()):
            return self.convolution.sum() * 0.0
        old, later = segments[:, :-2].flatten(0, 1), segments[:, 2:].flatten(0, 1)
        groups = torch.unflatten(old, 1, (-1, config.compression)).flatten(2)
        slots = functional.linear(groups, self.convolution)

        def read(memory: Tensor) -> Tensor:
            """[batch * later, heads, size, head_dim]."""
            q, k, v = (
                torch.unflatten(functional.linear(states, layer.weight.detach()), -1, (-1, config.head_dim))
                for states, layer in ((later, maps.query), (memory, maps.key), (memory, maps.value))
            )
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
            return functional.scaled_dot_product_attention(q, k, v, scale=maps.scale, enable_gqa=True)

        apart = (read(slots) - read(old)).square().mean(dim=(1, 3))  # [batch * later, size]
        asked = asked.flatten(0, 1)
        return (apart * asked).sum() / asked.sum()
