"""The mixers whose weights are products of features: all that came before is one matrix per head."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from mnemos.attention.patterns import causal_sums
from mnemos.attention.patterns.mixer import (
    PADDING,
    Mixer,
    MixerConfig,
    MixerState,
    check_inputs,
    check_state,
)
from mnemos.attention.patterns.projections import Projections, refuse_alibi


@dataclass(frozen=True, slots=True)
class SumState(MixerState):
    """The sum of `k v^T` over all tokens so far, a column for the sum of k beside it."""

    sums: Tensor  # [batch, kv_heads, features, head_dim + 1], fp32 or wider


class FeatureMixer(Mixer):
    """Averages weighted by products of non-negative features, `block` tokens at a time."""

    def __init__(self, config: MixerConfig) -> None:
        refuse_alibi(config, self.name)
        super().__init__(config)
        self.projections = Projections(config)

    @property
    @abstractmethod
    def features(self) -> int:
        """Features of a head's query or key."""

    @abstractmethod
    def query_features(self, q: Tensor) -> Tensor:
        """[..., head_dim] to [..., features], none negative."""

    @abstractmethod
    def key_features(self, k: Tensor) -> Tensor:
        """[..., head_dim] to [..., features], none negative."""

    def initial_state(self, batch: int) -> SumState:
        config, weight = self.config, self.projections.key.weight
        return SumState(
            torch.zeros(
                (batch, config.kv_heads, self.features, config.head_dim + 1),
                dtype=_wide(weight.dtype),
                device=weight.device,
            )
        )

    def forward(
        self, x: Tensor, positions: Tensor, state: MixerState | None = None
    ) -> tuple[Tensor, MixerState | None]:
        check_inputs(self.config, x, positions)
        before = self._sums(state, len(x)) if state is not None else None
        q, k, v = self.projections.split(x, positions)
        wide = _wide(q.dtype)
        # Sums over a whole sequence want fp32, whatever the projections run in.
        with torch.autocast(x.device.type, enabled=False):
            absent = (positions == PADDING)[:, None, :, None]
            keys = self.key_features(k.to(wide)).masked_fill(absent, 0.0)
            mixed, sums = causal_sums.causal_average(
                self.query_features(q.to(wide)), keys, v.to(wide), self.config.block, before
            )
        y = self.projections.join(mixed.to(v.dtype), positions)
        return y, None if before is None else SumState(sums)

    def _sums(self, state: MixerState, batch: int) -> Tensor:
        sums = check_state(state, SumState, batch).sums
        shape = (batch, self.config.kv_heads, self.features, self.config.head_dim + 1)
        if sums.shape != shape:
            raise ValueError(f"the state's sums must be {list(shape)}, not {list(sums.shape)}")
        return sums

    def operations(self, tokens: int) -> int:
        config = self.config
        return causal_sums.operations(
            tokens, config.block, config.heads, config.kv_heads, self.features, config.head_dim
        )


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
