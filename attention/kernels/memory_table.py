"""Memories as the kernels read them: spans over pages of a pool, found through a page table."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from mnemos.attention.kernels.page_layout import (
    ALIGNMENT,
    TILE,
    PageLayout,
    PayloadHead,
    PayloadPages,
    read_head,
    tiles_of,
)

__all__ = ["ALIGNMENT", "TILE", "MemoryTable", "PlanBuffers", "SplitPlan", "plan_splits", "table_of_payloads"]

WORK_COLUMNS = 5  # row of q, span, first entry of the page table, tiles, tokens


@dataclass(frozen=True, slots=True)
class MemoryTable:
    """Spans of one or more memories in one pool, all of one model and one number of bits."""

    pool: Tensor  # [layers, pages, page_bytes], uint8, laid out as `page_layout.py` says
    pages: Tensor  # [tiles], int32, beside the pool: the page of each tile of each span, in order
    tokens: tuple[int, ...]  # of each span, on the host
    bits: int  # 4, 8, or 16 for raw keys and values
    raw_dtype: torch.dtype  # of keys and values with 16 bits
    kv_heads: int
    head_dim: int

    @property
    def layers(self) -> int:
        return self.pool.shape[0]

    @property
    def layout(self) -> PageLayout:
        return PageLayout(self.bits, self.kv_heads, self.head_dim)

    @property
    def starts(self) -> tuple[int, ...]:
        """First entry of each span in the page table, and behind the last one."""
        return tuple(accumulate((tiles_of(tokens) for tokens in self.tokens), initial=0))

    def to(self, device: torch.device | str) -> "MemoryTable":
        return MemoryTable(
            self.pool.to(device),
            self.pages.to(device),
            self.tokens,
            self.bits,
            self.raw_dtype,
            self.kv_heads,
            self.head_dim,
        )

    def part_bytes(self, span: int) -> tuple[int, int, int, int]:
        """Bytes of K codes, K scales, V codes and V scales of one span, in all layers, without padding."""
        k_codes, k_scales, v_codes, v_scales = self.layout.part_bytes(self.tokens[span])
        layers = self.layers
        return layers * k_codes, layers * k_scales, layers * v_codes, layers * v_scales


@dataclass(frozen=True, slots=True)
class PlanBuffers:
    """Room for the plans and page tables of one captured graph, at places that stay."""

    work: Tensor  # [splits, 5], int32
    starts: Tensor  # [batch + 1], int32
    pages: Tensor  # [tiles], int32
    rows: int  # of q

    @classmethod
    def make(
        cls, *, splits: int, batch: int, tiles: int, rows: int | None = None, device: torch.device | str
    ) -> "PlanBuffers":
        """Without `rows`, one of q for each conversation. Empty: every conversation reads nothing."""
        work, starts, pages = (
            torch.zeros(shape, dtype=torch.int32, device=device)
            for shape in ((splits, WORK_COLUMNS), (batch + 1,), (tiles,))
        )
        return cls(work, starts, pages, batch if rows is None else rows)

    def fits(self, table: MemoryTable, plan: "SplitPlan") -> bool:
        return (
            len(plan.work) <= len(self.work)
            and len(plan.starts) <= len(self.starts)
            and len(table.pages) <= len(self.pages)
            and plan.rows <= self.rows
        )


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """Which spans each conversation of a batch reads, cut into pieces of similar length."""

    work: Tensor  # [splits, 5], int32: row of q, span, first of the page table, tiles, tokens
    starts: Tensor  # [batch + 1], int32: first split of each conversation
    reads: tuple[tuple[int, ...], ...]  # spans of each conversation, on the host
    query_rows: tuple[tuple[int, ...], ...]  # the row of q of each read
    rows: int  # of q

    @property
    def batch(self) -> int:
        return len(self.reads)

    def into(self, table: MemoryTable, buffers: PlanBuffers) -> tuple[MemoryTable, "SplitPlan"]:
        """Table and plan at the buffers' places, padded with work of no tiles and conversations of no reads.

        A graph that was captured over the buffers then reads these memories. Raises ValueError when they
        don't fit; `PlanBuffers.fits` asks.
        """
        if not buffers.fits(table, self):
            raise ValueError(
                f"a plan of {len(self.work)} splits, {self.batch} conversations, {len(table.pages)} tiles "
                f"and {self.rows} rows is larger than its buffers; take larger ones"
            )
        splits, tiles, ends = len(self.work), len(table.pages), len(self.starts)
        buffers.work[:splits].copy_(self.work)
        buffers.work[splits:].zero_()
        buffers.starts[:ends].copy_(self.starts)
        buffers.starts[ends:].fill_(splits)
        buffers.pages[:tiles].copy_(table.pages)
        none: tuple[tuple[int, ...], ...] = ((),) * (len(buffers.starts) - ends)
        moved = MemoryTable(
            table.pool,
            buffers.pages,
            table.tokens,
            table.bits,
            table.raw_dtype,
            table.kv_heads,
            table.head_dim,
        )
        return moved, SplitPlan(
            buffers.work, buffers.starts, self.reads + none, self.query_rows + none, buffers.rows
        )


def table_of_payloads(
    payloads: Sequence[bytes], *, raw_dtype: torch.dtype = torch.bfloat16, device: torch.device | str = "cpu"
) -> MemoryTable:
    """A table over the spans of `payloads`, in their order, in a pool that is just large enough.

    Raises ValueError when there are none, when they differ in model or in bits, or when one is malformed.
    """
    if not payloads:
        raise ValueError("a memory table needs at least one KV payload, and was given an empty list")
    heads = [read_head(payload) for payload in payloads]
    first = _shape(heads[0])
    for head in heads:
        if _shape(head) != first:
            raise ValueError(f"KV payloads of one table differ: {first} and {_shape(head)}")
    layers, total = heads[0].layers, sum(head.tiles for head in heads)
    pool = np.empty((layers, total, heads[0].layout.page_bytes), np.uint8)
    at = 0
    for payload, head in zip(payloads, heads, strict=True):
        PayloadPages(payload, head).write(pool[:, at : at + head.tiles], range(layers))
        at += head.tiles
    sizes = tuple(tokens for head in heads for tokens in head.tokens)
    return MemoryTable(
        torch.from_numpy(pool).to(device),
        torch.arange(total, dtype=torch.int32, device=device),
        sizes,
        heads[0].bits,
        raw_dtype,
        heads[0].kv_heads,
        heads[0].head_dim,
    )


def plan_splits(
    table: MemoryTable,
    reads: Sequence[Sequence[int]],
    *,
    tiles_per_split: int | None = None,
    query_rows: Sequence[Sequence[int]] | None = None,
    rows: int | None = None,
    allow_empty: bool = False,
) -> SplitPlan:
    """Cut what each conversation reads into splits; one plan serves every layer and token of a turn.

    Without `tiles_per_split` there are about four programs for each of 132 multiprocessors, of four tiles or
    more. `query_rows` names the row of q, of `rows` in all, for each read: a key that is to be seen `n`
    places further on is asked by the query turned back by `n`. Without it a conversation's row is its own.
    With `allow_empty` a conversation may read nothing: zeros and a log-sum-exp of -inf.

    Raises ValueError for an empty batch, an empty list of spans, an unknown span or row.
    """
    if not reads or not (allow_empty or all(reads)):
        raise ValueError(
            "each conversation of a batch must read at least one span; leave out those with none"
        )
    if query_rows is None:
        query_rows = [[index] * len(spans) for index, spans in enumerate(reads)]
        rows = len(reads) if rows is None else rows
    elif [len(each) for each in query_rows] != [len(spans) for spans in reads]:
        raise ValueError("a plan needs one row of q for each span that a conversation reads")
    named = [row for each in query_rows for row in each]
    rows = max(named, default=0) + 1 if rows is None else rows
    if min(named, default=0) < 0 or max(named, default=0) >= rows:
        raise ValueError(f"a plan names a row outside of the {rows} rows of q")
    for spans in reads:
        if spans and (min(spans) < 0 or max(spans) >= len(table.tokens)):
            raise ValueError(f"a plan names a span outside of the table's {len(table.tokens)}")
    tiles = [tiles_of(tokens) for tokens in table.tokens]
    if tiles_per_split is None:
        total = sum(tiles[span] for spans in reads for span in spans)
        tiles_per_split = max(4, total * table.kv_heads // (4 * 132))
    entries = table.starts
    work: list[tuple[int, int, int, int, int]] = []
    starts = [0]
    for spans, asked in zip(reads, query_rows, strict=True):
        for span, row in zip(spans, asked, strict=True):
            for first in range(0, tiles[span], tiles_per_split):
                count = min(tiles_per_split, tiles[span] - first)
                tokens = min(TILE * count, table.tokens[span] - TILE * first)
                work.append((row, span, entries[span] + first, count, tokens))
        starts.append(len(work))
    device = table.pool.device
    return SplitPlan(
        upload(work, device).reshape(-1, WORK_COLUMNS),
        upload(starts, device),
        tuple(tuple(spans) for spans in reads),
        tuple(tuple(each) for each in query_rows),
        rows,
    )


def upload(rows: Sequence[object], device: torch.device) -> Tensor:
    """Numbers as int32 on a device, without waiting for what its stream has to do yet."""
    listed = torch.tensor(rows, dtype=torch.int32, pin_memory=device.type == "cuda")
    return listed.to(device, non_blocking=True)


def _shape(head: PayloadHead) -> tuple[int, int, int, int]:
    return head.bits, head.layers, head.kv_heads, head.head_dim
