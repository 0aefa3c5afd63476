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

import struct
from collections.abc import Iterator
from dataclasses import dataclass

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


def write_pages(payload: bytes, head: PayloadHead, out: Bytes, layers: range) -> None:
    """The pages of some layers of a payload into `out [layers, tiles, page_bytes]`, every byte of it."""
    start, tile = head.start, 0
    for tokens in head.tokens:
        count = tiles_of(tokens)
        _write_span(payload, start, tokens, head, out[:, tile : tile + count], layers)
        start += head.layers * sum(head.layout.part_bytes(tokens))
        tile += count


def _write_span(
    payload: bytes, start: int, tokens: int, head: PayloadHead, out: Bytes, layers: range
) -> None:
    layout, heads = head.layout, head.kv_heads
    pages = out.reshape(len(layers), -1, heads, layout.head_bytes)  # [layers, tiles, heads, bytes]
    begins = list(_part_starts(head, tokens, start))
    whole, rest = divmod(tokens, TILE)
    for at, begin in ((0, begins[0]), (layout.v_codes, begins[2])):
        codes = _view(payload, begin, (head.layers, heads, tokens * layout.row_bytes))
        size = TILE * layout.row_bytes
        _tiled(codes[layers.start : layers.stop], pages[..., at : at + size], whole, rest * layout.row_bytes)
    if head.bits == 16:
        return
    groups = len(token_groups(tokens))
    size = layout.k_scale_bytes // 2
    both = _view(payload, begins[1], (2, head.layers, heads, groups, size))[:, layers.start : layers.stop]
    of_tile = np.minimum(np.arange(pages.shape[1]), groups - 1)
    at = TILE * layout.row_bytes
    for part in both:
        pages[..., at : at + size] = part[:, :, of_tile].transpose(0, 2, 1, 3)
        at += size
    row = layout.v_scale_bytes // 2
    size, at = TILE * row, layout.v_scales
    both = _view(payload, begins[3], (2, head.layers, heads, tokens * row))[:, layers.start : layers.stop]
    for part in both:
        _tiled(part, pages[..., at : at + size], whole, rest * row)
        at += size


def _tiled(rows: Bytes, out: Bytes, whole: int, rest_bytes: int) -> None:
    """Rows of each head `[layers, heads, bytes]`, a tile of them after the other: `out [layers, tiles, heads,
    bytes of a tile]`.
    """
    size = out.shape[-1]
    layers, heads = rows.shape[:2]
    full = rows[..., : whole * size].reshape(layers, heads, whole, size)
    out[:, :whole] = full.transpose(0, 2, 1, 3)
    if rest_bytes:
        out[:, whole, :, :rest_bytes] = rows[..., whole * size :]
        out[:, whole, :, rest_bytes:] = 0


def _part_starts(head: PayloadHead, tokens: int, start: int) -> Iterator[int]:
    for size in head.layout.part_bytes(tokens):
        yield start
        start += head.layers * size


def _view(payload: bytes, start: int, shape: tuple[int, ...]) -> Bytes:
    return np.frombuffer(payload, np.uint8, int(np.prod(shape)), start).reshape(shape)
