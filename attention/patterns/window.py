"""A sliding window with attention sinks (StreamingLLM, arXiv 2309.17453).

A token attends to the `window` tokens up to and with itself, and to the first `sinks` of the sequence: models
park attention there, and fall apart when those leave a plain window. Queries go in blocks, each against one
stretch of keys, so time and memory are n * (window + block + sinks), never n x n.
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
class WindowState(MixerState):
    """The last `window - 1` tokens, right-aligned, and the first `sinks`, left-aligned."""

    seen: Tensor  # [batch] int64: tokens so far, padding not counted
    k: Tensor  # [batch, kv_heads, window - 1, key_dim]
    v: Tensor  # [batch, kv_heads, window - 1, head_dim]
    sink_k: Tensor  # [batch, kv_heads, sinks, key_dim]
    sink_v: Tensor  # [batch, kv_heads, sinks, head_dim]


@register
class Window(Mixer):
    """The last tokens and the first few. State: K and V of those, however long the sequence."""

    name: ClassVar[str] = "window"
    paper: ClassVar[str] = "arXiv 2309.17453"
    complexity: ClassVar[Complexity] = Complexity("O(n w)", "O(n w / b)", 1.0, 1.0)

    def __init__(self, config: MixerConfig) -> None:
        super().__init__(config)
        self.projections = Projections(config)

    def initial_state(self, batch: int) -> WindowState:
        weight, config = self.projections.key.weight, self.config
        back, width = config.window - 1, self.projections.key_dim
        return WindowState(
            torch.zeros(batch, dtype=torch.int64, device=weight.device),
            weight.new_zeros(batch, config.kv_heads, back, width),
            weight.new_zeros(batch, config.kv_heads, back, config.head_dim),
            weight.new_zeros(batch, config.kv_heads, config.sinks, width),
            weight.new_zeros(batch, config.kv_heads, config.sinks, config.head_dim),
        )

    def forward(
        self, x: Tensor, positions: Tensor, state: MixerState | None = None
    ) -> tuple[Tensor, MixerState | None]:
        check_inputs(self.config, x, positions)
        before = check_state(state, WindowState, len(x)) if state is not None else None
        packed = pack(x, positions)
        q, k, v = self.projections.split(packed.x, packed.positions)
        if before is None:
            back = (0, 0, self.config.window - 1, 0)
            k, v = functional.pad(k, back), functional.pad(v, back)
            sinks = self.config.window - 1 + torch.arange(self.config.sinks, device=x.device)
            sinks = sinks.clamp(max=k.shape[2] - 1)
            seen = torch.zeros(1, dtype=torch.int64, device=x.device)
            mixed = self._mix(q, k, v, k[:, :, sinks], v[:, :, sinks], seen)
            after = None
        else:
            after, k, v = self._next(before, k, v, packed.positions)
            mixed = self._mix(q, k, v, after.sink_k, after.sink_v, before.seen)
        return packed.restore(self.projections.join(mixed, packed.positions)), after

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, sink_k: Tensor, sink_v: Tensor, seen: Tensor) -> Tensor:
        """[batch, heads, tokens, head_dim]; k and v have `window - 1` more in front, `seen [batch or 1]`."""
        config, (batch, _, tokens, _) = self.config, q.shape
        block, back = min(config.block, tokens), config.window - 1
        blocks = -(-tokens // block)
        fill = blocks * block - tokens
        rows = torch.arange(blocks * block, device=q.device).view(blocks, block, 1)
        ranks = seen.view(-1, 1, 1, 1) + rows  # [batch or 1, blocks, block, 1]
        distance = back + torch.arange(block, device=q.device)[:, None]
        distance = distance - torch.arange(back + block, device=q.device)  # [block, back + block]
        near = (distance >= 0) & (distance <= back) & (distance <= ranks)
        far = torch.arange(config.sinks, device=q.device) < ranks - back
        visible = torch.cat((far, near), dim=-1).expand(batch, -1, -1, -1)

        def stretches(first: Tensor, rest: Tensor) -> Tensor:
            """[batch * blocks, kv_heads, sinks + back + block, width]."""
            rest = functional.pad(rest, (0, 0, 0, fill)).unfold(2, back + block, block)
            rest = rest.permute(0, 2, 1, 4, 3)  # [batch, blocks, kv_heads, back + block, width]
            return torch.cat((first[:, None].expand(-1, blocks, -1, -1, -1), rest), dim=3).flatten(0, 1)

        queries = torch.unflatten(functional.pad(q, (0, 0, 0, fill)), 2, (blocks, block))
        mixed = attend(
            queries.transpose(1, 2).flatten(0, 1),
            stretches(sink_k, k),
            stretches(sink_v, v),
            self.projections.scale,
            visible.flatten(0, 1),
        )
        mixed = torch.unflatten(mixed, 0, (batch, blocks)).transpose(1, 2).flatten(2, 3)
        return mixed[:, :, :tokens]

    def _next(
        self, before: WindowState, k: Tensor, v: Tensor, positions: Tensor
    ) -> tuple[WindowState, Tensor, Tensor]:
        """The state after the packed tokens, and K and V of the kept tokens and these."""
        config, back = self.config, self.config.window - 1
        new = (positions != PADDING).sum(1)  # [batch]
        all_k, all_v = torch.cat((before.k, k), dim=2), torch.cat((before.v, v), dim=2)
        kept = new[:, None] + torch.arange(back, device=k.device)  # the last that are there
        slot = torch.arange(config.sinks, device=k.device)
        fresh = slot - before.seen[:, None]  # among the new tokens, below 0 where it is held already
        held = (fresh < 0)[:, None, :, None]
        fresh = fresh.clamp(0, k.shape[2] - 1)
        after = WindowState(
            before.seen + new,
            _pick(all_k, kept),
            _pick(all_v, kept),
            torch.where(held, before.sink_k, _pick(k, fresh)),
            torch.where(held, before.sink_v, _pick(v, fresh)),
        )
        return after, all_k, all_v

    def operations(self, tokens: int) -> int:
        block = min(self.config.block, tokens)
        keys = self.config.sinks + self.config.window - 1 + block
        pairs = -(-tokens // block) * block * keys
        return pairs * self.config.heads * 2 * self.projections.key_dim


def _pick(keys: Tensor, indices: Tensor) -> Tensor:
    """The tokens `indices [batch, picked]` of `keys [batch, kv_heads, tokens, width]`."""
    return keys.gather(2, indices[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[3]))
