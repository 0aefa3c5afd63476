"""Memories as the kernels read them: the bytes of their KV payloads and where each part lies.

The pool holds the parts of a payload (K codes, K scales, V codes, V scales) in the layout of
`mnemos.attention.memory_codec`, without its header and each part on a boundary of 16 bytes.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mnemos.attention.memory_codec import _KV_HEAD, _KV_MAGIC
from mnemos.attention.quantize import token_groups, value_group

TILE = 32  # tokens a tile; a tile never holds tokens of two K groups
ALIGNMENT = 16  # bytes
COLUMNS = 6  # tokens, K groups, then the pool offsets of K codes, K scales, V codes, V scales


@dataclass(frozen=True, slots=True)
class MemoryTable:
    """Spans of one or more memories in one pool, all of one model and one number of bits."""

    pool: Tensor  # [bytes], uint8, zeros between parts
    rows: Tensor  # [spans, 6], int64, beside the pool
    tokens: tuple[int, ...]  # of each span, on the host
    bits: int  # 4, 8, or 16 for raw keys and values
    raw_dtype: torch.dtype  # of keys and values with 16 bits
    layers: int
    kv_heads: int
    head_dim: int

    def to(self, device: torch.device | str) -> "MemoryTable":
        return MemoryTable(
            self.pool.to(device),
            self.rows.to(device),
            self.tokens,
            self.bits,
            self.raw_dtype,
            self.layers,
            self.kv_heads,
            self.head_dim,
        )

    def part_bytes(self, span: int) -> tuple[int, int, int, int]:
        """Bytes of K codes, K scales, V codes and V scales of one span."""
        return _part_bytes(self.tokens[span], self.bits, self.layers * self.kv_heads, self.head_dim)


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """Which spans each conversation of a batch reads, cut into pieces of similar length."""

    work: Tensor  # [splits, 4], int32: conversation, span, first tile, tiles
    starts: Tensor  # [batch + 1], int32: first split of each conversation
    reads: tuple[tuple[int, ...], ...]  # spans of each conversation, on the host

    @property
    def batch(self) -> int:
        return len(self.reads)


def table_of_payloads(
    payloads: Sequence[bytes], *, raw_dtype: torch.dtype = torch.bfloat16, device: torch.device | str = "cpu"
) -> MemoryTable:
    """A table over the spans of `payloads`, in their order.

    Raises ValueError when there are none, when they differ in model or in bits, or when one is malformed.
    """
    if not payloads:
        raise ValueError("a memory table needs at least one KV payload, and was given an empty list")
    parts: list[bytes] = []
    rows: list[list[int]] = []
    shape: tuple[int, int, int, int] | None = None
    end = 0
    for payload in payloads:
        if len(payload) < _KV_HEAD.size:
            raise ValueError("a KV payload is shorter than its header; encode the memory again")
        magic, bits, layers, kv_heads, dim, count = _KV_HEAD.unpack_from(payload)
        if magic != _KV_MAGIC or bits not in (4, 8, 16):
            raise ValueError("a memory table takes KV payloads of 4, 8 or 16 bits; encode the memory again")
        if shape not in (None, (bits, layers, kv_heads, dim)):
            raise ValueError(f"KV payloads of one table differ: {shape} and {(bits, layers, kv_heads, dim)}")
        shape = (bits, layers, kv_heads, dim)
        start = _KV_HEAD.size + 4 * count
        if len(payload) < start:
            raise ValueError("a KV payload is shorter than its header; encode the memory again")
        for tokens in struct.unpack_from(f"<{count}I", payload, _KV_HEAD.size):
            if not tokens:
                raise ValueError("a KV payload holds a span without tokens; encode the memory again")
            row = [tokens, len(token_groups(tokens))]
            for size in _part_bytes(tokens, bits, layers * kv_heads, dim):
                row.append(end)
                padding = -size % ALIGNMENT
                parts += [payload[start : start + size], bytes(padding)]
                start += size
                end += size + padding
            rows.append(row)
        if start != len(payload):
            raise ValueError("a KV payload is longer or shorter than its header says")
    assert shape is not None
    pool = torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8).clone()
    table = torch.tensor(rows, dtype=torch.int64)
    sizes = tuple(row[0] for row in rows)
    return MemoryTable(pool.to(device), table.to(device), sizes, shape[0], raw_dtype, *shape[1:])


def plan_splits(
    table: MemoryTable, reads: Sequence[Sequence[int]], *, tiles_per_split: int | None = None
) -> SplitPlan:
    """Cut what each conversation reads into splits; one plan serves every layer and token of a turn.

    Without `tiles_per_split` there are about four programs for each of 132 multiprocessors, of four tiles or
    more. Raises ValueError for an empty batch, an empty list of spans or an unknown span.
    """
    if not reads or not all(reads):
        raise ValueError(
            "each conversation of a batch must read at least one span; leave out those with none"
        )
    for spans in reads:
        if min(spans) < 0 or max(spans) >= len(table.tokens):
            raise ValueError(f"a plan names a span outside of the table's {len(table.tokens)}")
    tiles = [-(-tokens // TILE) for tokens in table.tokens]
    if tiles_per_split is None:
        total = sum(tiles[span] for spans in reads for span in spans)
        tiles_per_split = max(4, total * table.kv_heads // (4 * 132))
    work: list[tuple[int, int, int, int]] = []
    starts = [0]
    for index, spans in enumerate(reads):
        for span in spans:
            work.extend(
                (index, span, first, min(tiles_per_split, tiles[span] - first))
                for first in range(0, tiles[span], tiles_per_split)
            )
        starts.append(len(work))
    device = table.pool.device
    return SplitPlan(
        torch.tensor(work, dtype=torch.int32, device=device),
        torch.tensor(starts, dtype=torch.int32, device=device),
        tuple(tuple(spans) for spans in reads),
    )


def _part_bytes(tokens: int, bits: int, heads: int, dim: int) -> tuple[int, int, int, int]:
    codes = heads * tokens * dim * bits // 8
    if bits == 16:
        return codes, 0, codes, 0
    k_scales = 2 * 2 * heads * len(token_groups(tokens)) * dim
    return codes, k_scales, codes, 2 * 2 * heads * tokens * (dim // value_group(dim))
