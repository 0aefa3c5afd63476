"""Gradients of block-sparse attention in Triton: scores are made again, and nothing is added atomically.

Those of queries come by tiles of queries, those of keys and values by tiles of keys, each over its own list,
always in the same order: repeated runs give the same bits (arXiv 2307.08691 without its atomic sums).
"""

import triton
import triton.language as tl

from mnemos.attention.kernels.block_sparse_tiles import load_listed, load_own, load_rows, store_rows


@triton.jit
def _add_to_queries(dq, q, k, v, seen, given, lse, delta, scale_log2, PRECISION: tl.constexpr):
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2  # [ROWS, KEYS]
    weight = tl.where(seen, tl.exp2(scores - lse[:, None]), 0.0)
    change = tl.dot(given, tl.trans(v), input_precision=PRECISION)
    change = weight * (change - delta[:, None])
    return tl.dot(change.to(k.dtype), k, dq, input_precision=PRECISION)


@triton.jit
def grad_queries(
    q_ptr, k_ptr, v_ptr, there_ptr, block_k_ptr, block_v_ptr, visible_ptr, lists_ptr, counts_ptr,
    out_ptr, given_ptr, lse_ptr, delta_ptr, dq_ptr,
    tokens, keys, reads, block_keys, kv_heads, list_size, score_scale, scale_log2,
    GROUP: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    CHUNK: tl.constexpr, HAS_BLOCKS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head: dQ, and the sums of out * dout that the other kernels take."""
    plane = tl.program_id(0).to(tl.int64)
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    sequence = plane // (kv_heads * GROUP)
    kv_head = plane % (kv_heads * GROUP) // GROUP
    row = tile * ROWS + tl.arange(0, ROWS)
    offset = keys - tokens
    asks = tl.load(there_ptr + sequence * keys + offset + row, mask=row < tokens, other=0)
    any_asks = tl.max((asks != 0).to(tl.int32), axis=0)
    q = load_rows(q_ptr, plane, row, tokens, DIM, PADDED)
    given = load_rows(given_ptr, plane, row, tokens, DIM, PADDED)
    out = load_rows(out_ptr, plane, row, tokens, DIM, PADDED)
    delta = tl.sum(out.to(tl.float32) * given.to(tl.float32), axis=1)  # [ROWS]
    tl.store(delta_ptr + plane * tokens + row, delta, mask=row < tokens)
    lse = tl.load(lse_ptr + plane * tokens + row, mask=row < tokens, other=float("inf"))
    dq = tl.zeros((ROWS, PADDED), tl.float32)
    end = tl.minimum(tile * ROWS + ROWS + offset, keys) * any_asks
    for start in range(0, end, KEYS):
        k, v, seen = load_own(
            k_ptr, v_ptr, there_ptr, sequence, sequence * kv_heads + kv_head, start, row, offset, keys,
            DIM, PADDED, KEYS,
        )  # fmt: skip
        dq = _add_to_queries(dq, q, k, v, seen, given, lse, delta, scale_log2, PRECISION)
    if HAS_BLOCKS:
        pieces = tl.cdiv(block_keys, CHUNK)
        list_at = (sequence * tl.num_programs(1) + tile) * reads
        count = tl.load(counts_ptr + sequence * tl.num_programs(1) + tile) * any_asks
        for step in range(0, tl.cdiv(count, KEYS // CHUNK) * pieces):
            k, v, seen = load_listed(
                block_k_ptr, block_v_ptr, visible_ptr, lists_ptr, list_at, list_size, count, step, pieces,
                sequence, kv_head, row, tokens, reads, block_keys, kv_heads, DIM, PADDED, ROWS, KEYS, CHUNK,
            )  # fmt: skip
            dq = _add_to_queries(dq, q, k, v, seen, given, lse, delta, scale_log2, PRECISION)
    store_rows(dq_ptr, plane, row, tokens, dq * score_scale, DIM, PADDED)


@triton.jit
def _add_to_keys(dk, dv, k, v, q, given, seen, lse, delta, scale_log2, PRECISION: tl.constexpr):
    """Scores lie as `[KEYS, ROWS]` here. Rows that are not there have a log-sum-exp of inf: weight 0."""
    scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale_log2
    weight = tl.where(seen, tl.exp2(scores - lse[None, :]), 0.0)
    dv = tl.dot(weight.to(given.dtype), given, dv, input_precision=PRECISION)
    change = tl.dot(v, tl.trans(given), input_precision=PRECISION)
    change = weight * (change - delta[None, :])
    return tl.dot(change.to(q.dtype), q, dk, input_precision=PRECISION), dv


@triton.jit
def grad_own(
    q_ptr, k_ptr, v_ptr, there_ptr, given_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr,
    tokens, keys, kv_heads, score_scale, scale_log2,
    GROUP: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of a sequence's own keys of one KV head: every later query of every head of the group."""
    plane = tl.program_id(0).to(tl.int64)  # of [sequences, kv_heads]
    tile = tl.program_id(1)
    sequence = plane // kv_heads
    key = tile * KEYS + tl.arange(0, KEYS)
    offset = keys - tokens
    live = tl.load(there_ptr + sequence * keys + key, mask=key < keys, other=0) != 0
    k = load_rows(k_ptr, plane, key, keys, DIM, PADDED)
    v = load_rows(v_ptr, plane, key, keys, DIM, PADDED)
    dk = tl.zeros((KEYS, PADDED), tl.float32)
    dv = tl.zeros((KEYS, PADDED), tl.float32)
    first = tl.maximum(tile * KEYS - offset, 0) // ROWS
    turns = (tl.cdiv(tokens, ROWS) - first) * GROUP * tl.max(live.to(tl.int32), axis=0)
    for turn in range(0, turns):
        q_plane = plane * GROUP + turn % GROUP
        row = (first + turn // GROUP) * ROWS + tl.arange(0, ROWS)
        q = load_rows(q_ptr, q_plane, row, tokens, DIM, PADDED)
        given = load_rows(given_ptr, q_plane, row, tokens, DIM, PADDED)
        lse = tl.load(lse_ptr + q_plane * tokens + row, mask=row < tokens, other=float("inf"))
        delta = tl.load(delta_ptr + q_plane * tokens + row, mask=row < tokens, other=0.0)
        seen = live[:, None] & (key[:, None] <= (row + offset)[None, :])
        dk, dv = _add_to_keys(dk, dv, k, v, q, given, seen, lse, delta, scale_log2, PRECISION)
    store_rows(dk_ptr, plane, key, keys, dk * score_scale, DIM, PADDED)
    store_rows(dv_ptr, plane, key, keys, dv, DIM, PADDED)


@triton.jit
def grad_blocks(
    q_ptr, block_k_ptr, block_v_ptr, used_ptr, visible_ptr, readers_ptr, starts_ptr,
    given_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr,
    tokens, tiles, reads, block_keys, kv_heads, score_scale, scale_log2,
    GROUP: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Keys of one block of one KV head: every tile of queries that reads the block, of every head."""
    block = tl.program_id(0).to(tl.int64) // kv_heads
    kv_head = tl.program_id(0).to(tl.int64) % kv_heads
    key = tl.program_id(1) * KEYS + tl.arange(0, KEYS)
    live = key < tl.load(used_ptr + block)
    channel = tl.arange(0, PADDED)
    at = ((block * block_keys + key) * kv_heads + kv_head)[:, None] * DIM + channel[None, :]
    mask = (key < block_keys)[:, None]
    if PADDED > DIM:
        mask = mask & (channel < DIM)[None, :]
    k = tl.load(block_k_ptr + at, mask=mask & live[:, None], other=0.0)
    v = tl.load(block_v_ptr + at, mask=mask & live[:, None], other=0.0)
    dk = tl.zeros((KEYS, PADDED), tl.float32)
    dv = tl.zeros((KEYS, PADDED), tl.float32)
    first = tl.load(starts_ptr + block)
    turns = (tl.load(starts_ptr + block + 1) - first).to(tl.int32) * GROUP
    for turn in range(0, turns * tl.max(live.to(tl.int32), axis=0)):
        place = tl.load(readers_ptr + first + turn // GROUP)  # in [sequences, tiles, reads]
        sequence = place // reads // tiles
        column = place % reads
        row = (place // reads % tiles).to(tl.int32) * ROWS + tl.arange(0, ROWS)
        q_plane = (sequence * kv_heads + kv_head) * GROUP + turn % GROUP
        q = load_rows(q_ptr, q_plane, row, tokens, DIM, PADDED)
        given = load_rows(given_ptr, q_plane, row, tokens, DIM, PADDED)
        lse = tl.load(lse_ptr + q_plane * tokens + row, mask=row < tokens, other=float("inf"))
        delta = tl.load(delta_ptr + q_plane * tokens + row, mask=row < tokens, other=0.0)
        reads_at = visible_ptr + sequence * tokens * reads + column
        reads_it = tl.load(reads_at + row * reads, mask=row < tokens, other=0)
        seen = live[:, None] & (reads_it != 0)[None, :]
        dk, dv = _add_to_keys(dk, dv, k, v, q, given, seen, lse, delta, scale_log2, PRECISION)
    tl.store(dk_ptr + at, dk * score_scale, mask=mask)
    tl.store(dv_ptr + at, dv, mask=mask)
