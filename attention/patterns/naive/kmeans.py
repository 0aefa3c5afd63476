"""Attention by clusters, token by token."""

from torch import Tensor

from mnemos.attention.patterns.kmeans import Kmeans
from mnemos.attention.patterns.mixer import Mixer
from mnemos.attention.patterns.naive.lsh import mix_shown


def mix(mixer: Mixer, x: Tensor, positions: Tensor) -> Tensor:
    """The output for `x [batch, tokens, dim]`, by the mixer's weights and its centroids as they are."""
    assert isinstance(mixer, Kmeans)

    known: dict[tuple[int, int], tuple[Tensor, int]] = {}

    def cluster(query: Tensor, head: int) -> int:
        at = (id(query), head)  # its own while the tensor is kept
        if at not in known:
            known[at] = query, cluster_of(mixer, query[head], head)
        return known[at][1]

    def shown(queries: list[Tensor], head: int) -> list[int]:
        last = len(queries) - 1
        clusters = [cluster(query, head) for query in queries]
        return [rank for rank in range(last) if clusters[rank] == clusters[last]][-mixer.width :]

    return mix_shown(mixer, x, positions, shown)


def cluster_of(mixer: Kmeans, query: Tensor, head: int) -> int:
    """The centroid with the smallest angle; local heads have one cluster."""
    if head < mixer.local_heads:
        return 0
    products = [float(query.detach() @ one.to(query)) for one in mixer.centroids[head - mixer.local_heads]]
    return products.index(max(products))
