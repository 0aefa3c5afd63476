"""What a router under training finds on conversations that it isn't trained on, with vectors and without."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mnemos.attention.contrastive import Haystack, Query
from mnemos.attention.projection import Side, projected, standardised, to_int8
from mnemos.memory.calibrating_capture import Probe
from mnemos.memory.calibrating_fit import KS, gold_ranks, quality
from mnemos.memory.router import fuse
from mnemos.memory.training_capture import Captured

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)  # of the signal, tried
_NEAR_BEST = 0.004  # of quality: the questions to choose by are few
_NAMES = (*(str(k) for k in KS), "mrr")


class Finder:
    """Finds the evidence of questions that nothing is trained on, with the signal of the vectors and
    without.
    """

    def __init__(
        self,
        captured: Sequence[Captured],
        centres: tuple[Tensor, Tensor],
        spread: Tensor,
        heads: Sequence[int],
        weights: Mapping[str, float],
    ) -> None:
        self._captured = captured
        self._haystacks = [haystack_of(one, centres, spread, heads, weights) for one in captured]
        self._questions = [
            [standardised(probe.query.float(), centres[0], spread) for probe in one.probes]
            for one in captured
        ]
        self._heads = list(heads)
        self._weights = dict(weights)

    def quality(self, query: Side, memory: Side) -> float:
        """Mean over files of how well the vectors alone rank, and how well they do beside the other
        signals.
        """
        alone = self._mean(self._near(query, memory), lambda probe, near: near)
        beside = self._mean(self._near(query, memory), lambda probe, near: self._fused(probe, near, 0.75))
        return (alone + beside) / 2

    def choose(self, query: Side, memory: Side) -> float:
        """The smallest weight that ranks about as well as the best one."""
        near = self._near(query, memory)

        def beside(weight: float) -> float:
            weights = {**self._weights, "vector": weight}
            return self._mean(near, lambda probe, each: fused(probe, self._heads, weights, each))

        reached = [beside(weight) for weight in WEIGHTS]
        return next(
            weight for weight, each in zip(WEIGHTS, reached, strict=True) if each >= max(reached) - _NEAR_BEST
        )

    def measured(self, query: Side, memory: Side, weight: float) -> dict[str, dict[str, dict[str, float]]]:
        """Recall at `KS` and mean reciprocal rank: by router, then by file and their `mean`."""
        near = self._near(query, memory)
        ways: dict[str, Callable[[Probe, Tensor], Tensor]] = {
            "lexical": lambda probe, _: probe.lexical,
            "untrained": lambda probe, _: fused(probe, self._heads, self._weights, probe.vector),
            "trained": lambda probe, each: self._fused(probe, each, weight),
            "vector": lambda _, each: each,
        }
        return {name: self._table(near, way) for name, way in ways.items()}

    def _near(self, query: Side, memory: Side) -> list[list[Tensor]]:
        """Of each question: the product of its vector with those of the memories that exist, `[memories]`."""
        found = []
        for one, haystack, questions in zip(self._captured, self._haystacks, self._questions, strict=True):
            codes = torch.stack([to_int8(projected(states, memory)) for states in haystack.memories]).float()
            asked = [to_int8(projected(states, query)).float() for states in questions]
            found.append([codes[probe.visible] @ each for probe, each in zip(one.probes, asked, strict=True)])
        return found

    def _fused(self, probe: Probe, near: Tensor | None, weight: float) -> Tensor:
        return fused(probe, self._heads, {**self._weights, "vector": weight}, near)

    def _each(
        self, near: Sequence[Sequence[Tensor]], way: Callable[[Probe, Tensor], Tensor]
    ) -> list[tuple[str, Tensor, Tensor]]:
        """Of each question: its file, scores, and which memories are gold."""
        return [
            (one.file, way(probe, each), probe.gold)
            for one, some in zip(self._captured, near, strict=True)
            for probe, each in zip(one.probes, some, strict=True)
        ]

    def _mean(self, near: Sequence[Sequence[Tensor]], way: Callable[[Probe, Tensor], Tensor]) -> float:
        by_file: dict[str, list[float]] = {}
        for name, scores, gold in self._each(near, way):
            by_file.setdefault(name, []).append(float(quality(scores, gold)))
        return sum(sum(some) / len(some) for some in by_file.values()) / len(by_file)

    def _table(
        self, near: Sequence[Sequence[Tensor]], way: Callable[[Probe, Tensor], Tensor]
    ) -> dict[str, dict[str, float]]:
        by_file: dict[str, list[Tensor]] = {}
        for name, scores, gold in self._each(near, way):
            ranks = gold_ranks(scores, gold)
            row = torch.stack([*((ranks <= k).float().mean() for k in KS), 1 / ranks.min()])
            by_file.setdefault(name, []).append(row)
        rows = {name: torch.stack(some).mean(dim=0) for name, some in sorted(by_file.items())}
        rows["mean"] = torch.stack(list(rows.values())).mean(dim=0)
        return {
            name: {key: round(float(value), 4) for key, value in zip(_NAMES, row, strict=True)}
            for name, row in rows.items()
        }


def fused(
    probe: Probe, heads: Sequence[int], weights: Mapping[str, float], near: Tensor | None = None
) -> Tensor:
    """Scores as the router would give them, `[memories]`, with the vectors' products or without."""
    mass = probe.mass[list(heads)].mean(dim=0).clamp_min(1e-12).log()
    signals = {"mass": mass, "lexical": probe.lexical, "speaker": probe.speaker}
    if near is not None:
        signals["vector"] = near
    return fuse(signals, weights, probe.before, probe.after, worded=probe.worded)[0]


def haystack_of(
    one: Captured,
    centres: tuple[Tensor, Tensor],
    spread: Tensor,
    heads: Sequence[int],
    weights: Mapping[str, float],
) -> Haystack:
    queries = []
    for probe in one.probes:
        scores = fused(probe, heads, weights)
        base = torch.zeros(len(one.memories)).index_copy(0, probe.visible, scores)
        visible = probe.visible.tolist()
        order = scores.argsort(descending=True, stable=True).tolist()
        gold = tuple(visible[at] for at in probe.gold.nonzero()[:, 0].tolist())
        negatives = tuple(visible[at] for at in order if not probe.gold[at])
        states = standardised(probe.query.float(), centres[0], spread)
        queries.append(Query(states, gold, negatives, base))
    memories = tuple(standardised(each.float(), centres[1], spread) for each in one.memories)
    return Haystack(memories, tuple(queries), one.file)
