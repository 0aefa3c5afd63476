"""Decode attention over working memory in Triton: split over slots, joined with the part over memories.

A row's keys and values are found by address, so rows of any cache share a launch and a captured graph
outlives the conversations. Programs without a slot to see leave at once: one grid serves every length.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mnemos.attention.kernels.working_rows import WorkingRows

_TILE_BYTES = 16384  # of keys, and of values
_LOG2E = 1.4426950408889634


@triton.jit
def attend_working(
    q_ptr, fields_ptr, part_ptr, lse_ptr,
    rows, kv_heads, layer, score_scale,
    GROUP: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr, SPLITS: tl.constexpr,
    IS_LOCAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One split of one KV head of one row: partial output `[GROUP, DIM]` and log2-sum-exp2 `[GROUP]`."""
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    KIND: tl.constexpr = q_ptr.dtype.element_ty
    length = tl.load(fields_ptr + 2 * rows + row)  # fields by their numbers in `working_rows`
    begin = length * 0
    prefix = begin
    first_working = begin
    if IS_LOCAL:
        prefix = tl.load(fields_ptr + 3 * rows + row)
        first_prefix = tl.load(fields_ptr + 4 * rows + row)
        first_working = tl.minimum(tl.load(fields_ptr + 5 * rows + row), length - 1)
        begin = tl.where(first_prefix < prefix, first_prefix, tl.maximum(first_working, prefix))
        begin = tl.maximum(tl.minimum(begin, length - 1), 0)
    share = (length - begin + SPLITS * BLOCK - 1) // (SPLITS * BLOCK) * BLOCK
    start = begin + split * share
    end = tl.minimum(start + share, length)
    inner = tl.arange(0, 16)
    head = kv_head * GROUP + inner
    out_row = (split * rows + row) * kv_heads * GROUP + head
    in_group = inner < GROUP
    if start >= end:
        tl.store(lse_ptr + out_row, tl.full((16,), float("-inf"), tl.float32), mask=in_group)
        return
    channel = tl.arange(0, PADDED)
    inside = channel < DIM
    q_mask = in_group[:, None] & inside[None, :]
    q_at = q_ptr + (row * kv_heads * GROUP + head)[:, None] * DIM + channel[None, :]
    q = tl.load(q_at, mask=q_mask, other=0.0)  # [16, PADDED]
    capacity = tl.load(fields_ptr + 8 * rows + row)
    plane = (layer * kv_heads + kv_head) * capacity * DIM
    keys = tl.multiple_of(tl.load(fields_ptr + 6 * rows + row).to(tl.pointer_type(KIND)), 16) + plane
    values = tl.multiple_of(tl.load(fields_ptr + 7 * rows + row).to(tl.pointer_type(KIND)), 16) + plane
    acc = tl.zeros((16, PADDED), tl.float32)
    top = tl.full((16,), float("-inf"), tl.float32)
    total = tl.zeros((16,), tl.float32)
    for tile in range(start, end, BLOCK):
        slot = tile + tl.arange(0, BLOCK)
        live = slot < end
        if IS_LOCAL:
            live = live & ((slot < prefix) | (slot >= first_working))
        at = slot[:, None] * DIM + channel[None, :]
        mask = live[:, None] & inside[None, :]
        k = tl.load(keys + at, mask=mask, other=0.0)  # [BLOCK, PADDED]
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * score_scale
        scores = tl.where(live[None, :], scores, float("-inf"))  # [16, BLOCK]
        higher = tl.maximum(top, tl.max(scores, axis=1))
        shift = tl.where(higher == float("-inf"), 0.0, higher)  # a tile may be out of the window
        weight = tl.exp2(scores - shift[:, None])
        fade = tl.exp2(top - shift)
        total = total * fade + tl.sum(weight, axis=1)
        v = tl.load(values + at, mask=mask, other=0.0)
        acc = tl.dot(weight.to(KIND), v, acc * fade[:, None], input_precision="ieee")
        top = higher
    safe = tl.where(total > 0, total, 1.0)
    part_at = part_ptr + out_row[:, None] * DIM + channel[None, :]
    tl.store(part_at, acc / safe[:, None], mask=q_mask)
    tl.store(lse_ptr + out_row, tl.where(total > 0, top + tl.log2(safe), float("-inf")), mask=in_group)


@triton.jit
def join_working(
    part_ptr, part_lse_ptr, memory_ptr, memory_lse_ptr, mass_ptr, out_ptr, rows, heads,
    DIM: tl.constexpr, PADDED: tl.constexpr, SPLITS: tl.constexpr, HAS_MEMORY: tl.constexpr,
):  # fmt: skip
    """One head of one row: its splits, then these and its memory part by log-sum-exp, to `[DIM]`."""
    LOG2E: tl.constexpr = 1.4426950408889634
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, PADDED)
    inside = channel < DIM
    split = tl.arange(0, SPLITS).to(tl.int64)
    part_row = (split * rows + row) * heads + head
    lse = tl.load(part_lse_ptr + part_row)  # [SPLITS], base 2
    top = tl.max(lse, axis=0)
    shift = tl.where(top == float("-inf"), 0.0, top)
    weight = tl.exp2(lse - shift)
    # A split without slots is not read: what its place holds may be NaN.
    mask = (weight > 0)[:, None] & inside[None, :]
    parts = tl.load(part_ptr + part_row[:, None] * DIM + channel[None, :], mask=mask, other=0.0)
    total = tl.sum(weight, axis=0)
    seen = tl.sum(parts * weight[:, None], axis=0)  # [PADDED], times `total`
    if HAS_MEMORY:
        at = row * heads + head
        memory_lse = tl.load(memory_lse_ptr + at)
        lse_of_all = memory_lse + tl.zeros((PADDED,), tl.float32)
        weighed = memory_lse * tl.load(mass_ptr + row) * LOG2E
        # An empty part is not read: what it holds may be NaN.
        recalled = tl.load(
            memory_ptr + at * DIM + channel, mask=inside & (lse_of_all > float("-inf")), other=0.0
        )
        joint = tl.maximum(top, weighed)
        joint = tl.where(joint == float("-inf"), 0.0, joint)
        of_memory = tl.exp2(weighed - joint)
        of_working = tl.where(total > 0, tl.exp2(shift - joint), 0.0)
        seen = seen * of_working + recalled * of_memory
        total = total * of_working + of_memory
    out = seen / tl.where(total > 0, total, 1.0)
    tl.store(out_ptr + (row * heads + head) * DIM + channel, out.to(out_ptr.dtype.element_ty), mask=inside)


def working_attention(
    q: Tensor,
    working: WorkingRows,
    layer: int,
    score_scale: float,
    *,
    is_local: bool,
    memory: tuple[Tensor, Tensor, Tensor] | None,
    splits: int,
) -> Tensor:
    """As `mnemos.attention.kernels.dispatch.working_attention`."""
    rows, heads, dim = q.shape
    kv_heads = working.kv_heads
    padded = triton.next_power_of_2(dim)
    part = torch.empty(splits, rows, heads, dim, dtype=torch.float32, device=q.device)
    part_lse = torch.empty(splits, rows, heads, dtype=torch.float32, device=q.device)
    out = torch.empty_like(q)
    attend_working[(rows, kv_heads, splits)](
        q, working.fields, part, part_lse, rows, kv_heads, layer, score_scale * _LOG2E,
        GROUP=heads // kv_heads, DIM=dim, PADDED=padded, SPLITS=splits, IS_LOCAL=is_local,
        BLOCK=block_of(padded, q.element_size()),
        num_warps=4, num_stages=2,
    )  # fmt: skip
    recalled, lse, mass = (part, part_lse, part_lse) if memory is None else memory
    join_working[(rows, heads)](
        part, part_lse, recalled, lse, mass, out, rows, heads,
        DIM=dim, PADDED=padded, SPLITS=splits, HAS_MEMORY=memory is not None, num_warps=4,
    )  # fmt: skip
    return out


def block_of(padded: int, element_bytes: int) -> int:
    """Slots a tile, 16 to 64. fp32, which ordinary units multiply, spills registers in larger ones."""
    room = _TILE_BYTES if element_bytes == 2 else _TILE_BYTES // 2
    return min(64, max(16, room // (padded * element_bytes)))
