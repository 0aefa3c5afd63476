"""Memories of one session are about much the same: what stands beside a good one gains by it."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mnemos.store.nearby import Place


def session_signal(scores: Tensor, ids: Sequence[str], placed: Mapping[str, Place]) -> Tensor | None:
    """The best of `scores` `[memories]` in each memory's session, its own included, `[memories]`. None where
    all are of one session, which tells nothing apart.
    """
    sessions = [place.session if (place := placed.get(each)) is not None else None for each in ids]
    numbers: dict[str, int] = {}
    # What belongs to no session is one of its own.
    groups = np.array(
        [numbers.setdefault(each or f"\0{at}", len(numbers)) for at, each in enumerate(sessions)]
    )
    if len(numbers) < 2:
        return None
    best = np.full(len(numbers), -np.inf, dtype=np.float32)
    np.maximum.at(best, groups, scores.numpy())
    return torch.from_numpy(best[groups])
