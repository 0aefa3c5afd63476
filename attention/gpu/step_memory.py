"""The memories that the rows of a step read, at places that a captured graph knows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mnemos.attention.gpu.reads import ReadSet, together
from mnemos.attention.kernels.dispatch import split_kv_attention
from mnemos.attention.kernels.memory_table import MemoryTable, PlanBuffers, SplitPlan, plan_splits


class Wanted:
    """What the rows of a batch read: a table over it, a plan, and the queries that ask."""

    def __init__(self, sets: Sequence[ReadSet | None]) -> None:
        """Of each row, in order; at least one reads something, and all that do read from one pool."""
        present = [each for each in sets if each is not None]
        self.table = together(present)
        self.queries: list[tuple[int, int]] = []  # the row that asks, and how many places it is turned back
        reads: list[list[int]] = []
        query_rows: list[list[int]] = []
        span = 0
        for row, each in enumerate(sets):
            offsets = () if each is None else each.offsets
            first = len(self.queries)
            distinct = sorted(set(offsets))
            self.queries += [(row, offset) for offset in distinct]
            reads.append(list(range(span, span + len(offsets))))
            query_rows.append([first + distinct.index(offset) for offset in offsets])
            span += len(offsets)
        self.plan = plan_splits(
            self.table, reads, query_rows=query_rows, rows=len(self.queries), allow_empty=True
        )
        self.temperatures = [1.0 if each is None else each.temperature for each in sets]
        self.mass_scales = [1.0 if each is None else each.mass_scale for each in sets]


class StepMemory:
    """Static buffers for the memory part of one bucket."""

    def __init__(self, rows: int, reads: int, splits: int, tiles: int, device: torch.device) -> None:
        self._buffers = PlanBuffers.make(splits=splits, batch=rows, tiles=tiles, rows=reads, device=device)
        self._mass = torch.ones(rows, device=device)
        self._table: MemoryTable | None = None
        self._plan: SplitPlan | None = None

    def fill(self, wanted: Wanted) -> None:
        """From now on the step reads these."""
        self._table, self._plan = wanted.plan.into(wanted.table, self._buffers)
        self._mass.fill_(1.0)
        self._mass[: len(wanted.mass_scales)].copy_(torch.tensor(wanted.mass_scales))

    def clear(self) -> None:
        """Nothing is to be read until it is filled again."""
        self._table = self._plan = None

    def attend(self, queries: Tensor, layer: int, score_scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """Output and log-sum-exp of each row's memory part, and what its log-sum-exp is multiplied by."""
        assert self._table is not None and self._plan is not None, "filled before it is run"
        out, lse = split_kv_attention(queries, self._table, self._plan, layer, score_scale)
        return out, lse, self._mass
