"""A layer of a hybrid: a mixer and a gated MLP, each behind an RMSNorm and beside a residual."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from mnemos.attention.patterns.hybrid_config import HybridConfig
from mnemos.attention.patterns.mixer import Mixer, MixerState
from mnemos.attention.patterns.registry import make_mixer


@runtime_checkable
class RoutedMixer(Protocol):
    """A mixer that knows documents, and says how it scored them."""

    def forward_routed(
        self, x: Tensor, positions: Tensor, state: MixerState | None = None, asks: Tensor | None = None
    ) -> tuple[Tensor, MixerState | None, Tensor]:
        """As `Mixer.forward`, with router scores `[batch, documents]` last.

        `asks [batch, tokens]` says by which tokens of the last document the others are scored.
        """


class GatedMlp(nn.Module):
    """`down(silu(gate x) * up x)` (SwiGLU, arXiv 2002.05202)."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, width, bias=False)
        self.up = nn.Linear(dim, width, bias=False)
        self.down = nn.Linear(width, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., dim]` in and out."""
        y: Tensor = self.down(functional.silu(self.gate(x)) * self.up(x))
        return y


class HybridLayer(nn.Module):
    """One layer, mixing by its pattern."""

    def __init__(self, name: str, config: HybridConfig) -> None:
        super().__init__()
        dim = config.mixer.dim
        self.name = name
        self.mixer_norm = nn.RMSNorm(dim, eps=config.norm_eps)
        self.mixer: Mixer = make_mixer(name, config.mixer)
        self.mlp_norm = nn.RMSNorm(dim, eps=config.norm_eps)
        self.mlp = GatedMlp(dim, config.mlp_width)

    @property
    def is_routed(self) -> bool:
        """Whether its mixer knows documents."""
        return isinstance(self.mixer, RoutedMixer)

    def mix(
        self, x: Tensor, positions: Tensor, state: MixerState | None, asks: Tensor | None = None
    ) -> tuple[Tensor, MixerState | None, Tensor | None]:
        """What the mixer adds to `x [batch, tokens, dim]`, its state, and router scores if it has any."""
        if isinstance(self.mixer, RoutedMixer):
            return self.mixer.forward_routed(self.mixer_norm(x), positions, state, asks)
        added, state = self.mixer(self.mixer_norm(x), positions, state)
        return added, state, None

    def finish(self, x: Tensor, added: Tensor) -> Tensor:
        """The layer's output from its input and what its mixer adds, both `[batch, tokens, dim]`."""
        x = x + added
        return torch.add(x, self.mlp(self.mlp_norm(x)))
