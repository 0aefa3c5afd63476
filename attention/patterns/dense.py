"""Full causal attention (arXiv 1706.03762), what every other pattern is measured against.

n^2 multiply-adds. The fused kernels keep no scores (FlashAttention, arXiv 2205.14135), so memory is linear.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mnemos.attention.patterns.mixer import (
    Complexity,
    Mixer,
    MixerConfig,
    MixerState,
    check_inputs,
    check_state,
)
from mnemos.attention.patterns.packing import pack
from mnemos.attention.patterns.projections import Projections, attend, visible_among
from mnemos.attention.patterns.registry import register


@dataclass(frozen=True, slots=True)
class KvCache(MixerState):
    """K and V of all tokens so far."""

    k: Tensor  # [batch, kv_heads, cached, key_dim]
    v: Tensor  # [batch, kv_heads, cached, head_dim]
    positions: Tensor  # [batch, cached]


@register
class Dense(Mixer):
    """Every token attends to all before it. State: K and V of all of them."""

    name: ClassVar[str] = "dense"
    paper: ClassVar[str] = "arXiv 1706.03762"
    complexity: ClassVar[Complexity] = Complexity("O(n^2)", "O(n)", 2.0, 1.0)

    def __init__(self, config: MixerConfig) -> None:
        super().__init__(config)
        self.projections = Projections(config)

    def initial_state(self, batch: int) -> KvCache:
        weight, config = self.projections.key.weight, self.config
        return KvCache(
            weight.new_empty(batch, config.kv_heads, 0, self.projections.key_dim),
            weight.new_empty(batch, config.kv_heads, 0, config.head_dim),
            torch.empty(batch, 0, dtype=torch.int64, device=weight.device),
        )

    def forward(
        self, x: Tensor, positions: Tensor, state: MixerState | None = None
    ) -> tuple[Tensor, MixerState | None]:
        check_inputs(self.config, x, positions)
        if state is None:
            packed = pack(x, positions)
            q, k, v = self.projections.split(packed.x, packed.positions)
            mixed = attend(q, k, v, self.projections.scale)
            return packed.restore(self.projections.join(mixed, packed.positions)), None
        cache = check_state(state, KvCache, len(x))
        q, k, v = self.projections.split(x, positions)
        after = KvCache(
            torch.cat((cache.k, k), dim=2),
            torch.cat((cache.v, v), dim=2),
            torch.cat((cache.positions, positions), dim=1),
        )
        mixed = attend(
            q, after.k, after.v, self.projections.scale, visible_among(after.positions, x.shape[1])
        )
        return self.projections.join(mixed, positions), after

    def operations(self, tokens: int) -> int:
        pairs = tokens * (tokens + 1) // 2
        return pairs * self.config.heads * 2 * self.projections.key_dim
