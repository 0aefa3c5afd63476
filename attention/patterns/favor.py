"""FAVOR+ of the Performer (arXiv 2009.14794): positive orthogonal random features that estimate the softmax.

With w a standard normal vector, exp(q k) is the mean of exp(w q - |q|^2 / 2) * exp(w k - |k|^2 / 2):
unbiased, never negative, and the better the more `features` there are.
"""

from typing import ClassVar

import torch
from torch import Tensor

from mnemos.attention.patterns import causal_sums
from mnemos.attention.patterns.feature_mixer import FeatureMixer
from mnemos.attention.patterns.mixer import Complexity, MixerConfig
from mnemos.attention.patterns.registry import register

LEAST = 1e-6  # added to each feature: a query whose features meet no key's averages them all
_EXPONENT = 40.0  # the most that a key's feature is the exponential of: far below fp32's 88


@register
class Favor(FeatureMixer):
    """An estimate of dense attention by random features. State: one matrix per KV head."""

    name: ClassVar[str] = "favor"
    paper: ClassVar[str] = "arXiv 2009.14794"
    complexity: ClassVar[Complexity] = Complexity("O(n m (d + b))", "O(n (m + b + m d / b))", 1.0, 1.0)
    directions: Tensor

    def __init__(self, config: MixerConfig) -> None:
        super().__init__(config)
        self.register_buffer("directions", torch.empty(config.features, config.head_dim))
        self.redraw(config.seed)

    @property
    def features(self) -> int:
        return self.config.features

    def redraw(self, seed: int) -> None:
        """Draws the random features anew, as the paper does now and then in training. States become void."""
        drawn = orthogonal_directions(self.config.features, self.config.head_dim, seed)
        self.directions.copy_(drawn)

    def query_features(self, q: Tensor) -> Tensor:
        exponents = self._exponents(q)
        # A factor of the query's own: it is in every weight, and goes out with their sum.
        return (exponents - exponents.amax(-1, keepdim=True).detach()).exp() + LEAST

    def key_features(self, k: Tensor) -> Tensor:
        # No largest over keys: later ones would count. But no exponent is above |w|^2 / 2 (at k = w).
        most = self.directions.to(k.dtype).square().sum(-1).max() / 2
        return (self._exponents(k) - (most - _EXPONENT).clamp(min=0)).exp() + LEAST

    def _exponents(self, x: Tensor) -> Tensor:
        x = x * self.config.head_dim**-0.25  # half of the softmax's scale for q and half for k
        projected = x @ self.directions.to(x.dtype).mT
        return projected - x.square().sum(-1, keepdim=True) / 2

    def operations(self, tokens: int) -> int:
        config = self.config
        mapped = tokens * (config.heads + config.kv_heads) * config.features * config.head_dim
        return mapped + causal_sums.operations(
            tokens, config.block, config.heads, config.kv_heads, config.features, config.head_dim
        )


def orthogonal_directions(features: int, dim: int, seed: int) -> Tensor:
    """`[features, dim]` in float64: standard normal vectors, but orthogonal in blocks of `dim`."""
    generator = torch.Generator().manual_seed(seed)
    blocks = -(-features // dim)
    normal = torch.randn(blocks, dim, dim, generator=generator, dtype=torch.float64)
    basis, upper = torch.linalg.qr(normal)
    # LAPACK's signs depend on the input: only with R's diagonal made positive is every direction as likely.
    directions: Tensor = (basis * upper.diagonal(dim1=-2, dim2=-1).sign()[:, None]).mT.flatten(0, 1)
    lengths: Tensor = torch.randn(features, dim, generator=generator, dtype=torch.float64).norm(dim=-1)
    return directions[:features] * lengths[:, None]
