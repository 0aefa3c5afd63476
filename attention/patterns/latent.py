"""Multi-head latent attention (MLA of DeepSeek-V2, arXiv 2405.04434).

Keys and values of all heads are expanded from one small latent vector per token, and only that is kept. RoPE
cannot be in what is expanded later, so a rotated key of half a head's width, shared by all heads, stands
beside it. Reading on, the expansion is folded into queries and outputs instead (the absorbed form): no key of
an earlier token is ever expanded again.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from mnemos.attention.patterns.mixer import (
    Complexity,
    Mixer,
    MixerConfig,
    MixerState,
    check_inputs,
    check_state,
)
from mnemos.attention.patterns.packing import pack
from mnemos.attention.patterns.projections import (
    ALIBI_WIDTH,
    attend,
    rotate,
    visible_among,
    with_alibi,
    zero_padding,
)
from mnemos.attention.patterns.registry import register


@dataclass(frozen=True, slots=True)
class LatentState(MixerState):
    """The latents of all tokens, and the shared keys that hold their positions."""

    latents: Tensor  # [batch, 1, cached, latent]
    shared: Tensor  # [batch, 1, cached, shared_dim]
    positions: Tensor  # [batch, cached]


@register
class Latent(Mixer):
    """Dense attention whose state is `latent` + `shared_dim` numbers a token. `kv_heads` plays no part."""

    name: ClassVar[str] = "latent"
    paper: ClassVar[str] = "arXiv 2405.04434"
    complexity: ClassVar[Complexity] = Complexity("O(n^2)", "O(n)", 2.0, 1.0)

    def __init__(self, config: MixerConfig) -> None:
        super().__init__(config)
        heads, width = config.heads, config.head_dim
        turned = max(2, width // 4 * 2) if config.position == "rope" else 0
        self.query = nn.Linear(config.dim, heads * (width + turned), bias=False)
        self.compress = nn.Linear(config.dim, config.latent, bias=False)
        self.norm = nn.RMSNorm(config.latent)
        self.shared_key = nn.Linear(config.dim, turned, bias=False) if turned else None
        self.key = nn.Linear(config.latent, heads * width, bias=False)
        self.value = nn.Linear(config.latent, heads * width, bias=False)
        self.out = nn.Linear(heads * width, config.dim, bias=False)
        self.scale = (width + turned) ** -0.5

    def initial_state(self, batch: int) -> LatentState:
        weight = self.compress.weight
        empty = weight.new_empty(batch, 1, self.config.dim)[:, :0]
        positions = torch.empty(batch, 0, dtype=torch.int64, device=weight.device)
        _, _, shared = self._read(empty, positions)
        return LatentState(weight.new_empty(batch, 1, 0, self.config.latent), shared, positions)

    def forward(
        self, x: Tensor, positions: Tensor, state: MixerState | None = None
    ) -> tuple[Tensor, MixerState | None]:
        check_inputs(self.config, x, positions)
        if state is None:
            packed = pack(x, positions)
            mixed = self._expanded(*self._read(packed.x, packed.positions))
            return packed.restore(self._join(mixed, packed.positions)), None
        before = check_state(state, LatentState, len(x))
        q, latents, shared = self._read(x, positions)
        after = LatentState(
            torch.cat((before.latents, latents), dim=2),
            torch.cat((before.shared, shared), dim=2),
            torch.cat((before.positions, positions), dim=1),
        )
        return self._join(self._absorbed(q, after), positions), after

    def _read(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [batch, heads, tokens, head_dim + shared_dim]; latents and shared keys as one head."""
        config = self.config
        q = torch.unflatten(self.query(x), -1, (config.heads, -1)).transpose(1, 2)
        latents = self.norm(self.compress(x).to(self.norm.weight.dtype))[:, None]
        if self.shared_key is not None:
            own, turned = q[..., : config.head_dim], q[..., config.head_dim :]
            q = torch.cat((own, rotate(turned, positions, config.rope_theta)), dim=-1)
            return q, latents, rotate(self.shared_key(x)[:, None], positions, config.rope_theta)
        shared = latents[..., :0]
        if config.position == "alibi":
            q, shared = with_alibi(q, shared, positions, self.scale)
        return q, latents, shared

    def _expanded(self, q: Tensor, latents: Tensor, shared: Tensor) -> Tensor:
        """Every head's own keys and values, causally: [batch, heads, tokens, head_dim]."""
        heads = self.config.heads
        k, v = (
            torch.unflatten(part(latents[:, 0]), -1, (heads, -1)).transpose(1, 2)
            for part in (self.key, self.value)
        )
        k = torch.cat((k, shared.expand(-1, heads, -1, -1)), dim=-1)
        return attend(q, k, v, self.scale)

    def _absorbed(self, q: Tensor, state: LatentState) -> Tensor:
        """The same against the latents themselves, as one KV head for all."""
        width, heads = self.config.head_dim, self.config.heads
        key, value = (part.weight.view(heads, width, -1) for part in (self.key, self.value))
        q = torch.cat((q[..., :width] @ key, q[..., width:]), dim=-1)  # [..., latent + shared_dim]
        keys = torch.cat((state.latents, state.shared), dim=-1)
        visible = visible_among(state.positions, q.shape[2])
        return attend(q, keys, state.latents, self.scale, visible) @ value.mT

    def _join(self, mixed: Tensor, positions: Tensor) -> Tensor:
        return zero_padding(self.out(mixed.transpose(1, 2).flatten(2)), positions)

    def operations(self, tokens: int) -> int:
        width = self.query.out_features // self.config.heads
        if self.config.position == "alibi":
            width += ALIBI_WIDTH
        return tokens * (tokens + 1) // 2 * self.config.heads * 2 * width
