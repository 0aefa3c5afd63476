"""Attention among tokens of one cluster (Routing Transformer, arXiv 2003.05997).

Half of the heads are local: they attend to the last `window` tokens. The others have `clusters` centroids
each, and attend to the last `window` tokens whose queries (of length one; keys are queries) are nearest to
the same centroid: no cluster reads more, however many tokens it drew. The paper's choice, the `window` tokens
of the whole sequence that are nearest to a centroid, depends on later tokens.

Centroids are no weights: they follow their tokens by a moving average while training. What a forward pass saw
is applied at the start of the next one, so that recomputing it (checkpointing) finds the same clusters.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from mnemos.attention.patterns.bucket_mixer import BucketMixer, Level
from mnemos.attention.patterns.mixer import Complexity, MixerConfig
from mnemos.attention.patterns.registry import register


@register
class Kmeans(BucketMixer):
    """Local heads, and heads that read their cluster. State: keys, values and clusters of all tokens."""

    name: ClassVar[str] = "kmeans"
    paper: ClassVar[str] = "arXiv 2003.05997"
    complexity: ClassVar[Complexity] = Complexity("O(n (k + w))", "O(n w)", 1.0, 1.0)
    decay: float = 0.999
    centroids: Tensor  # [routed heads, clusters, head_dim], of length one
    seen: Tensor  # [routed heads, clusters, head_dim]: sums of the last pass's queries
    count: Tensor  # [routed heads, clusters]: how many they were

    def __init__(self, config: MixerConfig) -> None:
        super().__init__(config)
        self.width, self.rounds = config.window, 1
        self.local_heads = config.heads // 2
        generator = torch.Generator().manual_seed(config.seed)
        shape = (config.heads - self.local_heads, config.clusters, config.head_dim)
        self.register_buffer(
            "centroids", functional.normalize(torch.randn(shape, generator=generator), dim=-1)
        )
        self.register_buffer("seen", torch.zeros(shape))
        self.register_buffer("count", torch.zeros(shape[:2]))

    def levels(self, tokens: int) -> Sequence[Level]:
        return [Level(0, tokens, self.config.clusters)]

    @torch.no_grad()
    def codes(self, qk: Tensor, there: Tensor, whole: bool) -> Tensor:
        queries = functional.normalize(qk[:, self.local_heads :], dim=-1)
        learns = whole and self.training and not _recomputes()
        if learns:
            self._follow()
        clusters = (queries @ self.centroids.to(qk).transpose(1, 2)).argmax(dim=-1)
        if learns:
            self._note(queries, clusters, there)
        return functional.pad(clusters, (0, 0, self.local_heads, 0))[:, :, None]

    def _follow(self) -> None:
        """Moves centroids that drew tokens in the last pass towards their mean."""
        mean = self.seen / self.count.clamp_min(1)[..., None]
        moved = functional.normalize(self.decay * self.centroids + (1 - self.decay) * mean, dim=-1)
        self.centroids.copy_(torch.where(self.count[..., None] > 0, moved, self.centroids))

    def _note(self, queries: Tensor, clusters: Tensor, there: Tensor) -> None:
        first = torch.arange(len(self.count), device=clusters.device)[:, None] * self.config.clusters
        slot = (first + clusters).flatten()  # among all heads' clusters
        one = there[:, None].expand_as(clusters).to(self.seen)
        self.count.zero_().view(-1).index_add_(0, slot, one.flatten())
        rows = queries.to(self.seen) * one[..., None]
        self.seen.zero_().view(-1, queries.shape[-1]).index_add_(0, slot, rows.flatten(0, 2))

    def _coding(self, tokens: int) -> int:
        return tokens * self.centroids.numel()


def _recomputes() -> bool:
    """Whether this is a pass that the backward one runs again."""
    return torch._C._current_graph_task_id() != -1
