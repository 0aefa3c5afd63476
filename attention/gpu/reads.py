"""Spans of memories that lie quantised on a device, and those that one conversation reads."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Protocol

import torch
from torch import Tensor

from mnemos.attention.kernels.memory_table import MemoryTable, table_of_payloads
from mnemos.attention.kernels.naive.split_kv_attention import read_span
from mnemos.attention.kernels.page_layout import TILE, tiles_of
from mnemos.attention.kv import SpanKV
from mnemos.attention.memory_codec import encode_kv
from mnemos.attention.rope import Rotary


class Reads(Protocol):
    """Memories that stay where they are until `release`."""

    @property
    def table(self) -> MemoryTable: ...

    def wait(self, layer: int) -> None:
        """The current stream waits until that layer has arrived."""

    def release(self) -> None: ...


class TableReads:
    """Memories in a pool of their own, overwritten when they are released."""

    def __init__(self, table: MemoryTable) -> None:
        self.table = table

    def wait(self, layer: int) -> None:
        """They are there."""

    def release(self) -> None:
        self.table.pool.zero_()


@dataclass(frozen=True, slots=True)
class PagedSpan:
    """One span of a memory on a device: a place in the table of what was paged in with it."""

    reads: Reads
    index: int

    @property
    def tokens(self) -> int:
        return self.reads.table.tokens[self.index]

    @property
    def nbytes(self) -> int:
        return sum(self.reads.table.part_bytes(self.index))

    def dense(self) -> SpanKV:
        """Its keys and values in fp32, for a cache that holds them as tensors."""
        table = self.reads.table
        for layer in range(table.layers):
            self.reads.wait(layer)
        layers = [read_span(table, self.index, layer) for layer in range(table.layers)]
        return SpanKV(*(torch.stack(part) for part in zip(*layers, strict=True)))


_serials = count(1)


class ReadSet:
    """The spans that one conversation reads, and how; all lie in one pool."""

    def __init__(
        self, spans: Sequence[PagedSpan], offsets: Sequence[int], temperature: float, mass_scale: float
    ) -> None:
        """Each span is read `offsets` places further on than it was encoded.

        Raises ValueError when the spans lie in different pools.
        """
        self.serial = next(_serials)  # no other one's, ever
        self._reads = list({id(span.reads): span.reads for span in spans}.values())
        self.table = _merged(spans)
        self.offsets = tuple(offsets)
        self.temperature, self.mass_scale = temperature, mass_scale
        device = self.table.pool.device
        places = zip(self.table.starts, self.table.tokens, strict=False)
        rows = [TILE * start + at for start, tokens in places for at in range(tokens)]
        self._rows = torch.tensor(rows, device=device)  # of the tokens among those of whole tiles
        # All tiles as those of one span: every tile has scales of its own.
        self._whole = replace(self.table, tokens=(TILE * len(self.table.pages),))
        self._phases: dict[int, Tensor] = {}  # of each rotary: [tokens, head_dim / 2]

    @property
    def tokens(self) -> int:
        return sum(self.table.tokens)

    @property
    def pool(self) -> int:
        """Where the pool lies: those who read one share a launch."""
        return self.table.pool.data_ptr()

    def wait(self, layer: int) -> None:
        """The current stream waits until that layer of every span has arrived."""
        for reads in self._reads:
            reads.wait(layer)

    def release(self) -> None:
        """Nothing of it is read any more."""
        for reads in self._reads:
            reads.release()

    def dense(self, layer: int, rotary: Rotary, k: Tensor, v: Tensor) -> None:
        """Keys, moved to their places, and values of one layer into `k` and `v`, `[kv_heads, tokens,
        head_dim]`.
        """
        keys, values = (part.index_select(1, self._rows) for part in read_span(self._whole, 0, layer))
        if any(self.offsets):
            pairs = torch.view_as_complex(torch.unflatten(keys, -1, (-1, 2)))
            keys = torch.view_as_real(pairs * self._moved_by(rotary)).flatten(-2)
        k.copy_(keys)
        v.copy_(values)

    def _moved_by(self, rotary: Rotary) -> Tensor:
        """The rotation of each token's keys, `[tokens, head_dim / 2]`, complex."""
        found = self._phases.get(id(rotary))
        if found is None:
            kinds = torch.stack([rotary.at(offset) for offset in self.offsets])
            kinds = kinds / kinds.abs()  # a magnitude other than 1 is in the keys already
            sizes = torch.tensor(self.table.tokens, device=kinds.device)
            found = self._phases[id(rotary)] = kinds.repeat_interleave(sizes, dim=0, output_size=self.tokens)
        return found


def paged(spans: Sequence[SpanKV], device: torch.device) -> list[PagedSpan]:
    """Spans that are tensors as bf16 ones in a pool of their own."""
    reads = TableReads(table_of_payloads([encode_kv(spans, 16)], device=device))
    return [PagedSpan(reads, index) for index in range(len(spans))]


def _merged(spans: Sequence[PagedSpan]) -> MemoryTable:
    """A table over these spans alone, in their order. Raises ValueError when they lie in several pools."""
    tables = [span.reads.table for span in spans]
    if len({table.pool.data_ptr() for table in tables}) != 1:
        raise ValueError("one conversation reads memories of one pool, and these lie in several")
    pages = []
    for span, table in zip(spans, tables, strict=True):
        start = table.starts[span.index]
        pages.append(table.pages[start : start + tiles_of(span.tokens)])
    return replace(tables[0], pages=torch.cat(pages), tokens=tuple(span.tokens for span in spans))


def together(sets: Sequence[ReadSet]) -> MemoryTable:
    """A table over the spans of several read sets of one pool, one set after the other."""
    tables = [each.table for each in sets]
    tokens = tuple(size for table in tables for size in table.tokens)
    return replace(tables[0], pages=torch.cat([table.pages for table in tables]), tokens=tokens)
