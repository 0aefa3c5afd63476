"""Decode attention over paged memories in Triton: split over KV, then joined by log-sum-exp.

The scales of K are folded into q once a tile of 32 tokens: `q . (code * scale + low)` is
`(q * scale) . code + q . low`. Those of V change from token to token and from 32 channels to the next, so
they are applied to the codes in registers, in fp16 pairs. Codes become fp16 by the bits of 1024 + code, for
the conversion instructions of integers run at a quarter of the rate.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mnemos.attention.kernels.memory_table import MemoryTable, SplitPlan
from mnemos.attention.quantize import value_group

_LOG2E = 1.4426950408889634
_BLOCK_SPLITS = 16


@triton.jit
def _small_to_half(codes):
    """uint8 to the same value in fp16."""
    return (codes.to(tl.uint16) | 0x6400).to(tl.float16, bitcast=True) - 1024.0


@triton.jit
def _value_tile(
    codes, halves_ptr, at, token, live, channel, GROUPS: tl.constexpr, V_GROUP: tl.constexpr,
    WIDTH: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Codes `[32, PARTS * WIDTH]` from `channel` on, with their scales and minima: fp16 of that shape."""
    group = (channel + tl.arange(0, PARTS) * WIDTH) // V_GROUP  # [PARTS]
    where = at + token[:, None] * GROUPS + group[None, :]
    mask = live[:, None] & (group < GROUPS)[None, :]
    scale = tl.load(halves_ptr + where, mask=mask, other=0.0)  # [32, PARTS]
    low = tl.load(halves_ptr + where + 32 * GROUPS, mask=mask, other=0.0)
    wide = tl.reshape(_small_to_half(codes), (32, PARTS, WIDTH))
    return tl.reshape(wide * scale[:, :, None] + low[:, :, None], (32, PARTS * WIDTH))


@triton.jit
def attend_splits(
    q_ptr, bytes_ptr, halves_ptr, pages_ptr, work_ptr, bias_ptr, out_ptr, lse_ptr, kv_heads, score_scale,
    GROUP: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr, BITS: tl.constexpr,
    V_GROUP: tl.constexpr, WIDTH: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """One split of one KV head: unscaled partial output `[GROUP, DIM]` and its log2-sum-exp2 `[GROUP]`.

    `bytes_ptr` is one layer of the pool, `halves_ptr` the same as fp16, or as the raw dtype when there are no
    codes; places in a head are those of `PageLayout`.
    """
    LOG2E: tl.constexpr = 1.4426950408889634
    SPAN: tl.constexpr = DIM // 2 if BITS == 4 else DIM  # channels that one load covers
    GROUPS: tl.constexpr = DIM // V_GROUP
    ROW: tl.constexpr = DIM * BITS // 8
    K_SCALES: tl.constexpr = 32 * ROW
    V_CODES: tl.constexpr = K_SCALES + (0 if BITS == 16 else 4 * DIM)
    V_SCALES: tl.constexpr = V_CODES + 32 * ROW
    HEAD: tl.constexpr = V_SCALES + (0 if BITS == 16 else 128 * GROUPS)
    split = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    asked = tl.load(work_ptr + split * 5).to(tl.int64)  # row of q
    span = tl.load(work_ptr + split * 5 + 1).to(tl.int64)
    first = tl.load(work_ptr + split * 5 + 2)
    count = tl.load(work_ptr + split * 5 + 3)
    tokens = tl.load(work_ptr + split * 5 + 4)
    if count == 0:
        return

    row = tl.arange(0, 16)
    channel = tl.arange(0, PADDED)
    token = tl.arange(0, 32)
    in_row = channel < SPAN
    head = (asked * kv_heads + kv_head) * GROUP + row  # [16]
    q_at = q_ptr + head[:, None] * DIM + channel[None, :]
    q_mask = (row < GROUP)[:, None] & in_row[None, :]
    q_low = tl.load(q_at, mask=q_mask, other=0.0).to(tl.float32) * score_scale  # [16, PADDED]
    acc_low = tl.zeros((16, PADDED), tl.float32)
    if BITS == 4:
        q_high = tl.load(q_at + SPAN, mask=q_mask, other=0.0).to(tl.float32) * score_scale
        acc_high = tl.zeros((16, PADDED), tl.float32)
    shift = 0.0
    if HAS_BIAS:
        shift = tl.load(bias_ptr + span) * LOG2E
    top = tl.full((16,), float("-inf"), tl.float32)
    total = tl.zeros((16,), tl.float32)
    in_tile = token[:, None] * (DIM if BITS == 16 else ROW) + channel[None, :]  # [32, PADDED]

    page = tl.load(pages_ptr + first)
    for tile in range(0, count):
        block = page.to(tl.int64) * kv_heads + kv_head
        # A tile ahead: a page that is known only now would cost the loads a stage of their pipeline.
        page = tl.load(pages_ptr + first + tl.minimum(tile + 1, count - 1))
        live = tile * 32 + token < tokens
        mask = live[:, None] & in_row[None, :]
        if BITS == 16:
            k = tl.load(halves_ptr + block * (HEAD // 2) + in_tile, mask=mask, other=0.0)  # [32, PADDED]
            v = tl.load(halves_ptr + block * (HEAD // 2) + V_CODES // 2 + in_tile, mask=mask, other=0.0)
            scores = tl.dot(q_low.to(k.dtype), tl.trans(k)) + shift  # [16, 32]
        else:
            k_bytes = tl.load(bytes_ptr + block * HEAD + in_tile, mask=mask, other=0)  # [32, PADDED]
            v_bytes = tl.load(bytes_ptr + block * HEAD + V_CODES + in_tile, mask=mask, other=0)
            scale_at = halves_ptr + block * (HEAD // 2) + K_SCALES // 2 + channel
            low_at = scale_at + DIM
            scale = tl.load(scale_at, mask=in_row, other=0.0).to(tl.float32)  # [PADDED]
            low = tl.load(low_at, mask=in_row, other=0.0).to(tl.float32)
            constant = tl.sum(q_low * low[None, :], axis=1)  # [16]
            if BITS == 8:
                k = _small_to_half(k_bytes)
                scores = tl.dot((q_low * scale[None, :]).to(tl.float16), tl.trans(k))
            else:
                k = _small_to_half(k_bytes & 15)
                scores = tl.dot((q_low * scale[None, :]).to(tl.float16), tl.trans(k))
                scale = tl.load(scale_at + SPAN, mask=in_row, other=0.0).to(tl.float32)
                low = tl.load(low_at + SPAN, mask=in_row, other=0.0).to(tl.float32)
                constant += tl.sum(q_high * low[None, :], axis=1)
                k = _small_to_half(k_bytes >> 4)
                scores = tl.dot((q_high * scale[None, :]).to(tl.float16), tl.trans(k), scores)
            scores += constant[:, None] + shift
        scores = tl.where(live[None, :], scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1))  # finite: a tile has a live token
        weight = tl.exp2(scores - higher[:, None])  # [16, 32]
        fade = tl.exp2(top - higher)
        total = total * fade + tl.sum(weight, axis=1)
        top = higher
        if BITS == 16:
            acc_low = tl.dot(weight.to(v.dtype), v, acc_low * fade[:, None])
        else:
            v_at = block * (HEAD // 2) + V_SCALES // 2
            p = weight.to(tl.float16)
            PARTS: tl.constexpr = PADDED // WIDTH
            if BITS == 8:
                v = _value_tile(v_bytes, halves_ptr, v_at, token, live, 0, GROUPS, V_GROUP, WIDTH, PARTS)
                acc_low = tl.dot(p, v, acc_low * fade[:, None])
            else:
                v = _value_tile(v_bytes & 15, halves_ptr, v_at, token, live, 0, GROUPS, V_GROUP, WIDTH, PARTS)
                acc_low = tl.dot(p, v, acc_low * fade[:, None])
                v = _value_tile(
                    v_bytes >> 4, halves_ptr, v_at, token, live, SPAN, GROUPS, V_GROUP, WIDTH, PARTS
                )
                acc_high = tl.dot(p, v, acc_high * fade[:, None])

    out_head = (split * kv_heads + kv_head) * GROUP + row
    out_at = out_ptr + out_head[:, None] * DIM + channel[None, :]
    tl.store(out_at, acc_low / total[:, None], mask=q_mask)
    if BITS == 4:
        tl.store(out_at + SPAN, acc_high / total[:, None], mask=q_mask)
    tl.store(lse_ptr + out_head, top + tl.log2(total), mask=row < GROUP)


@triton.jit
def join_splits(
    part_ptr, part_lse_ptr, starts_ptr, out_ptr, lse_ptr, heads,
    DIM: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The splits of one head of one conversation to its output `[DIM]` and natural log-sum-exp."""
    LN2: tl.constexpr = 0.6931471805599453
    batch = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    first = tl.load(starts_ptr + batch)
    last = tl.load(starts_ptr + batch + 1)
    channel = tl.arange(0, PADDED)
    top = tl.full((1,), float("-inf"), tl.float32)
    total = tl.zeros((1,), tl.float32)
    acc = tl.zeros((PADDED,), tl.float32)
    for start in range(first, last, BLOCK):
        split = (start + tl.arange(0, BLOCK)).to(tl.int64)
        live = split < last
        at = split * heads + head
        lse = tl.load(part_lse_ptr + at, mask=live, other=float("-inf"))  # [BLOCK]
        mask = live[:, None] & (channel < DIM)[None, :]
        part = tl.load(part_ptr + at[:, None] * DIM + channel[None, :], mask=mask, other=0.0)
        higher = tl.maximum(top, tl.max(lse, axis=0))
        weight = tl.exp2(lse - higher)
        fade = tl.exp2(top - higher)
        total = total * fade + tl.sum(weight, axis=0)
        acc = acc * fade + tl.sum(part * weight[:, None], axis=0)
        top = higher
    at = batch * heads + head
    total = tl.where(total > 0, total, 1.0)  # no split, nothing read: zeros, and -inf, which is `top`
    tl.store(out_ptr + at * DIM + channel, acc / total, mask=channel < DIM)
    tl.store(lse_ptr + at + tl.arange(0, 1), (top + tl.log2(total)) * LN2)


def shape_constants(bits: int, dim: int) -> dict[str, int]:
    """What the split kernel is compiled for besides the group and the bias."""
    padded = triton.next_power_of_2(dim // 2 if bits == 4 else dim)
    group = dim if bits == 16 else value_group(dim)
    regular = (dim // 2 if bits == 4 else dim) % group == 0 and group == 32
    width = 32 if regular else 16
    return {"DIM": dim, "PADDED": padded, "BITS": bits, "V_GROUP": group, "WIDTH": width}


def warps_of(bits: int, padded: int) -> int:
    """Warps that load a tile of 32 tokens and `padded` channels at 16 bytes a thread, from 2 to 4."""
    return 2 if 32 * padded * (2 if bits == 16 else 1) <= 2 * 512 else 4


def split_kv_attention(
    q: Tensor, table: MemoryTable, plan: SplitPlan, layer: int, score_scale: float, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `mnemos.attention.kernels.dispatch.split_kv_attention`."""
    heads, dim = q.shape[1:]
    batch, splits = plan.batch, plan.work.shape[0]
    part = torch.empty(splits, heads, dim, dtype=torch.float32, device=q.device)
    part_lse = torch.empty(splits, heads, dtype=torch.float32, device=q.device)
    out = torch.empty(batch, heads, dim, dtype=torch.float32, device=q.device)
    lse = torch.empty(batch, heads, dtype=torch.float32, device=q.device)
    constants = shape_constants(table.bits, dim)
    pages = table.pool[layer]
    halves = pages.view(table.raw_dtype if table.bits == 16 else torch.float16)
    if splits:
        attend_splits[(splits, table.kv_heads)](
            q, pages, halves, table.pages, plan.work, q if bias is None else bias, part, part_lse,
            table.kv_heads, score_scale * _LOG2E,
            GROUP=heads // table.kv_heads, HAS_BIAS=bias is not None, **constants,
            num_warps=warps_of(table.bits, constants["PADDED"]), num_stages=3,
        )  # fmt: skip
    join_splits[(batch, heads)](
        part, part_lse, plan.starts, out, lse, heads,
        DIM=dim, PADDED=triton.next_power_of_2(dim), BLOCK=_BLOCK_SPLITS, num_warps=4,
    )  # fmt: skip
    return out, lse
