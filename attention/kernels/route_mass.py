"""Log-sum-exp of scores by segment in Triton: every key is read once for a whole block of queries."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mnemos.attention.kernels.segments import SegmentKeys

TOKENS = 64  # a tile
SEGMENTS = 8  # a program goes through, with its queries at hand
ROWS = 64  # queries a program; a larger block goes over the keys again
_LOG2E = 1.4426950408889634


@triton.jit
def segment_lse(
    queries_ptr, keys_ptr, scales_ptr, starts_ptr, owner_ptr, out_ptr,
    rows, segments, key_heads, score_scale,
    DIM: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr,
    SEGMENTS: tl.constexpr,
):  # fmt: skip
    """`SEGMENTS` segments of one key head for `ROWS` queries."""
    LN2: tl.constexpr = 0.6931471805599453
    first = tl.program_id(0).to(tl.int64) * SEGMENTS
    head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, PADDED)
    inside = channel < DIM
    q_at = queries_ptr + (head * rows + row)[:, None] * DIM + channel[None, :]
    queries = tl.load(q_at, mask=(row < rows)[:, None] & inside[None, :], other=0.0).to(tl.float32)
    queries = queries * score_scale
    last = tl.minimum(first + SEGMENTS, segments)
    for segment in range(first, last):
        memory = tl.load(owner_ptr + segment).to(tl.int64)
        scale = tl.load(scales_ptr + (memory * key_heads + head) * DIM + channel, mask=inside, other=0.0)
        folded = (queries * scale.to(tl.float32)[None, :]).to(tl.float16)  # [ROWS, PADDED]
        start = tl.load(starts_ptr + segment)
        end = tl.load(starts_ptr + segment + 1)
        top = tl.full((ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        for tile in range(start, end, TOKENS):
            token = tile + tl.arange(0, TOKENS)
            live = token < end
            key_at = keys_ptr + (token * key_heads + head)[:, None] * DIM + channel[None, :]
            codes = tl.load(key_at, mask=live[:, None] & inside[None, :], other=0)  # [TOKENS, PADDED]
            # The bits of 1024 + (code + 128) in fp16: cheaper than converting integers.
            lifted = (codes.to(tl.uint8, bitcast=True) ^ 0x80).to(tl.uint16) | 0x6400
            keys = lifted.to(tl.float16, bitcast=True) - 1152.0
            scores = tl.dot(folded, tl.trans(keys))  # [ROWS, TOKENS]
            scores = tl.where(live[None, :], scores, float("-inf"))
            higher = tl.maximum(top, tl.max(scores, axis=1))
            total = total * tl.exp2(top - higher) + tl.sum(tl.exp2(scores - higher[:, None]), axis=1)
            top = higher
        tl.store(
            out_ptr + (head * rows + row) * segments + segment, (top + tl.log2(total)) * LN2, mask=row < rows
        )


def route_mass(queries: Tensor, segments: SegmentKeys, score_scale: float) -> Tensor:
    """As `mnemos.attention.kernels.dispatch.route_mass`."""
    key_heads, rows, dim = queries.shape
    out = torch.empty(key_heads, rows, segments.segments, dtype=torch.float32, device=queries.device)
    block = rows_of(rows)
    segment_lse[(triton.cdiv(segments.segments, SEGMENTS), key_heads, triton.cdiv(rows, block))](
        queries, segments.keys, segments.scales, segments.starts, segments.owner, out,
        rows, segments.segments, key_heads, score_scale * _LOG2E,
        DIM=dim, PADDED=triton.next_power_of_2(dim), ROWS=block, TOKENS=TOKENS, SEGMENTS=SEGMENTS,
        num_warps=4, num_stages=3,
    )  # fmt: skip
    return out


def rows_of(rows: int) -> int:
    """Queries of a program: a power of two from 16 to 64."""
    return int(min(ROWS, max(16, triton.next_power_of_2(rows))))
