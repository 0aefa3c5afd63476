"""How a KV payload lies in pages, and its way from the one to the other.

One page holds one tile (at most 32 tokens of one K group) of one layer; heads follow one another, so that
what a program of one KV head reads of a page is one piece:

    page   [head 0 | head 1 | ...]
    head   K codes [32, row] | K scales and minima [2, head_dim] | V codes [32, row] | V scales and minima
           [2, 32, head_dim / 32]

A row is the codes of one token and head, scales are fp16, and raw keys and values of 16 bits have none. Tiles
of one K group repeat its scales; rows behind the last token are zeros. Every part begins on a boundary of 16
bytes.
"""

import math
import struct
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mnemos.attention.memory_codec import _KV_HEAD, _KV_MAGIC
from mnemos.attention.quantize import token_groups, value_group

TILE = 32  # tokens a page; a tile never holds tokens of two K groups
ALIGNMENT = 16  # bytes
PAGED_BITS = (4, 8, 16)

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PageLayout:
    """Sizes of a page and places in it, in bytes."""

    bits: int  # 4, 8, or 16 for raw keys and values
    kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        if self.bits not in PAGED_BITS:
            raise ValueError(f"pages hold keys and values of 4, 8 or 16 bits, not of {self.bits}")
        if self.kv_heads < 1 or self.head_dim < 4 or self.head_dim % 4:
            raise ValueError(
                f"pages take a head_dim that is a multiple of 4, not {self.kv_heads} x {self.head_dim}"
            )

    @property
    def row_bytes(self) -> int:
        return self.head_dim * self.bits // 8

    @property
    def k_scale_bytes(self) -> int:
        """Of one head and tile."""
        return 0 if self.bits == 16 else 4 * self.head_dim

    @property
    def v_scale_bytes(self) -> int:
        """Of one head and token."""
        return 0 if self.bits == 16 else 4 * self.v_groups

    @property
    def v_groups(self) -> int:
        return self.head_dim // value_group(self.head_dim)

    @property
    def v_codes(self) -> int:
        """Where the codes of V begin in a head."""
        return TILE * self.row_bytes + self.k_scale_bytes

    @property
    def v_scales(self) -> int:
        return self.v_codes + TILE * self.row_bytes

    @property
    def head_bytes(self) -> int:
        return self.v_scales + TILE * self.v_scale_bytes

    @property
    def page_bytes(self) -> int:
        return self.kv_heads * self.head_bytes

    def part_bytes(self, tokens: int) -> tuple[int, int, int, int]:
        """Bytes of K codes, K scales, V codes and V scales of one layer of a span, without padding."""
        codes = self.kv_heads * tokens * self.row_bytes
        k_scales = self.kv_heads * len(token_groups(tokens)) * self.k_scale_bytes
        return codes, k_scales, codes, self.kv_heads * tokens * self.v_scale_bytes


@dataclass(frozen=True, slots=True)
class PayloadHead:
    """What a KV payload says of itself."""

    bits: int
    layers: int
    kv_heads: int
    head_dim: int
    tokens: tuple[int, ...]  # of each span
    start: int  # of the first span's bytes

    @property
    def layout(self) -> PageLayout:
        return PageLayout(self.bits, self.kv_heads, self.head_dim)

    @property
    def tiles(self) -> int:
        return sum(tiles_of(tokens) for tokens in self.tokens)


def tiles_of(tokens: int) -> int:
    return -(-tokens // TILE)


def read_head(payload: bytes) -> PayloadHead:
    """The head of a KV payload, held against its length. Raises ValueError when it is malformed or its bits
    are none that pages hold.
    """
    if len(payload) < _KV_HEAD.size:
        raise ValueError("a KV payload is shorter than its header; encode the memory again")
    magic, bits, layers, kv_heads, dim, count = _KV_HEAD.unpack_from(payload)
    if magic != _KV_MAGIC or bits not in PAGED_BITS:
        raise ValueError("a memory table takes KV payloads of 4, 8 or 16 bits; encode the memory again")
    start = _KV_HEAD.size + 4 * count
    if len(payload) < start:
        raise ValueError("a KV payload is shorter than its header; encode the memory again")
    tokens = struct.unpack_from(f"<{count}I", payload, _KV_HEAD.size)
    if 0 in tokens:
        raise ValueError("a KV payload holds a span without tokens; encode the memory again")
    head = PayloadHead(bits, layers, kv_heads, dim, tokens, start)
    size = sum(layers * part for each in tokens for part in head.layout.part_bytes(each))
    if len(payload) != start + size:
        raise ValueError("a KV payload is longer or shorter than its header says")
    return head


class PayloadPages:
    """A payload as pages; what does not change from layer to layer is worked out once."""

    def __init__(self, payload: bytes, head: PayloadHead) -> None:
        self.tokens = head.tokens
        self.tiles = head.tiles
        self._heads = head.kv_heads
        self._head_bytes = head.layout.head_bytes
        self._parts: list[_Part] = []
        start, tile = head.start, 0
        for tokens in head.tokens:
            start = self._add_span(payload, head, start, tile, tokens)
            tile += tiles_of(tokens)

    def write(self, out: Bytes, layers: range) -> None:
        """The pages of some layers into `out [layers, tiles, page_bytes]`, every byte of it."""
        pages = out.reshape(len(layers), self.tiles, self._heads, self._head_bytes)
        for part in self._parts:
            source = part.rows[layers.start : layers.stop]  # [layers, heads, bytes]
            target = pages[:, part.tile :, :, part.at : part.at + part.size]
            full = source[..., : part.whole * part.size]
            full = full.reshape(len(layers), self._heads, part.whole, part.size)
            target[:, : part.whole] = full.transpose(0, 2, 1, 3)
            if part.rest_bytes:
                rest = source[..., part.rest_start : part.rest_start + part.rest_bytes]
                target[:, part.whole, :, : part.rest_bytes] = rest
                target[:, part.whole, :, part.rest_bytes :] = 0

    def _add_span(self, payload: bytes, head: PayloadHead, start: int, tile: int, tokens: int) -> int:
        """Its parts; where the next span begins."""
        layout, layers, heads = head.layout, head.layers, head.kv_heads
        whole, rest = divmod(tokens, TILE)
        groups = len(token_groups(tokens))
        sizes = layout.part_bytes(tokens)

        def add(begin: int, row_bytes: int, at: int) -> None:
            """A part with rows of tokens."""
            rows = _view(payload, begin, (layers, heads, tokens * row_bytes))
            size = TILE * row_bytes
            self._parts.append(_Part(rows, tile, at, size, whole, whole * size, rest * row_bytes))

        add(start, layout.row_bytes, 0)
        start += layers * sizes[0]
        at = TILE * layout.row_bytes
        for _ in range(2 if layout.k_scale_bytes else 0):  # scales, then minima
            size = layout.k_scale_bytes // 2
            rows = _view(payload, start, (layers, heads, groups * size))
            # A group of up to 47 tokens lends its scales to a second tile.
            last = (groups - 1) * size if rest else 0
            self._parts.append(_Part(rows, tile, at, size, whole, last, size if rest else 0))
            start += layers * sizes[1] // 2
            at += size
        add(start, layout.row_bytes, layout.v_codes)
        start += layers * sizes[2]
        at = layout.v_scales
        for _ in range(2 if layout.v_scale_bytes else 0):
            row = layout.v_scale_bytes // 2
            add(start, row, at)
            start += layers * sizes[3] // 2
            at += TILE * row
        return start


class _Part(NamedTuple):
    """One part of a span: where its bytes are, and where they go in a head of each of its pages."""

    rows: Bytes  # [layers, heads, bytes], of the payload
    tile: int  # first of the span
    at: int
    size: int  # bytes in a page
    whole: int  # pages that are filled from the rows one after the other
    rest_start: int  # of the last page in the rows
    rest_bytes: int  # of the last page; zeros follow


def _view(payload: bytes, start: int, shape: tuple[int, ...]) -> Bytes:
    return np.frombuffer(payload, np.uint8, math.prod(shape), start).reshape(shape)
