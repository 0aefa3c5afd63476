"""The centroids of a large index's lists, by k-means over vectors of public text: never over those of a
bank.
"""

import faiss
import numpy as np
import torch
from torch import Tensor

from mnemos.attention.projection import to_int8

_LISTS = 256
_PER_LIST = 8  # vectors, at least
_ROUNDS = 12


def centroids_of(vectors: Tensor, seed: int) -> Tensor:
    """At most 256 centroids `[lists, dims]` in int8 of vectors `[vectors, dims]` of length one."""
    count, dims = vectors.shape
    lists = max(1, min(_LISTS, count // _PER_LIST))
    means = faiss.Kmeans(
        dims,
        lists,
        niter=_ROUNDS,
        seed=seed,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=count,
    )
    means.train(np.ascontiguousarray(vectors.numpy(), dtype=np.float32))
    return to_int8(torch.nn.functional.normalize(torch.from_numpy(means.centroids).view(lists, dims), dim=1))
