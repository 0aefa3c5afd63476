"""Linear attention (arXiv 2006.16236): the softmax gives way to the feature map elu + 1.

A weight is a product of features, so all that came before is one matrix per head. RoPE, where asked for,
turns q and k before the feature map.
"""

from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from mnemos.attention.patterns.feature_mixer import FeatureMixer
from mnemos.attention.patterns.mixer import Complexity
from mnemos.attention.patterns.registry import register


@register
class Linear(FeatureMixer):
    """An average weighted by products of elu + 1. State: one matrix per KV head."""

    name: ClassVar[str] = "linear"
    paper: ClassVar[str] = "arXiv 2006.16236"
    complexity: ClassVar[Complexity] = Complexity("O(n d (d + b))", "O(n (d + b + d^2 / b))", 1.0, 1.0)

    @property
    def features(self) -> int:
        return self.config.head_dim

    def query_features(self, q: Tensor) -> Tensor:
        return functional.elu(q) + 1

    def key_features(self, k: Tensor) -> Tensor:
        return functional.elu(k) + 1
