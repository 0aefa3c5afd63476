"""Tiles of keys that a tile of queries meets: its own sequence's, and those of the blocks that it reads."""

import triton
import triton.language as tl


@triton.jit
def load_rows(pointer, plane, row, rows, DIM: tl.constexpr, PADDED: tl.constexpr):
    """Rows of one plane of `[planes, rows, DIM]`, zeros outside. A plane has fewer than 2^31 numbers."""
    channel = tl.arange(0, PADDED)
    mask = (row < rows)[:, None]
    if PADDED > DIM:
        mask = mask & (channel < DIM)[None, :]
    return tl.load(
        pointer + plane * rows * DIM + (row[:, None] * DIM + channel[None, :]), mask=mask, other=0.0
    )


@triton.jit
def store_rows(pointer, plane, row, rows, values, DIM: tl.constexpr, PADDED: tl.constexpr):
    channel = tl.arange(0, PADDED)
    mask = (row < rows)[:, None]
    if PADDED > DIM:
        mask = mask & (channel < DIM)[None, :]
    tl.store(pointer + plane * rows * DIM + (row[:, None] * DIM + channel[None, :]), values, mask=mask)


@triton.jit
def load_own(
    k_ptr, v_ptr, there_ptr, sequence, plane, start, row, offset, keys,
    DIM: tl.constexpr, PADDED: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """K and V `[KEYS, PADDED]` of a sequence's own tokens from `start` on, and who sees them."""
    key = start + tl.arange(0, KEYS)
    k = load_rows(k_ptr, plane, key, keys, DIM, PADDED)
    v = load_rows(v_ptr, plane, key, keys, DIM, PADDED)
    live = tl.load(there_ptr + sequence * keys + key, mask=key < keys, other=0)
    seen = (live != 0)[None, :] & (key[None, :] <= (row + offset)[:, None])
    return k, v, seen


@triton.jit
def load_listed(
    k_ptr, v_ptr, visible_ptr, lists_ptr, list_at, list_size, count, step, pieces, sequence, kv_head, row,
    tokens, reads, block_keys, kv_heads,
    DIM: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The `step`-th tile of keys of a tile's list: `KEYS / CHUNK` blocks, or a piece of a long block."""
    BLOCKS: tl.constexpr = KEYS // CHUNK
    channel = tl.arange(0, PADDED)
    key = tl.arange(0, KEYS)
    first = step // pieces * BLOCKS
    entry = first + key // CHUNK
    within = step % pieces * CHUNK + key % CHUNK
    listed = entry < count
    block = tl.load(lists_ptr + list_size + list_at + entry, mask=listed, other=0).to(tl.int64)
    used = tl.load(lists_ptr + 2 * list_size + list_at + entry, mask=listed, other=0)
    live = within < used
    at = ((block * block_keys + within) * kv_heads + kv_head)[:, None] * DIM + channel[None, :]
    mask = live[:, None]
    if PADDED > DIM:
        mask = mask & (channel < DIM)[None, :]
    k = tl.load(k_ptr + at, mask=mask, other=0.0)
    v = tl.load(v_ptr + at, mask=mask, other=0.0)
    whole = first + tl.arange(0, BLOCKS)
    column = tl.load(lists_ptr + list_at + whole, mask=whole < count, other=0)
    seen_at = visible_ptr + sequence * tokens * reads + (row[:, None] * reads + column[None, :])
    seen = tl.load(seen_at, mask=(row < tokens)[:, None] & (whole < count)[None, :], other=0)
    if CHUNK > 1:  # [ROWS, BLOCKS] to [ROWS, KEYS]
        seen = tl.reshape(tl.broadcast_to(seen[:, :, None], (ROWS, BLOCKS, CHUNK)), (ROWS, KEYS))
    return k, v, (seen != 0) & live[None, :]
