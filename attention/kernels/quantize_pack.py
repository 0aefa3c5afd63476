"""Keys and values to codes and scales in Triton: read once, equal bit for bit to `attention.quantize`.

The two halves of the channels are held apart, as int4 lays them in low and high nibbles.
"""

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from mnemos.attention.quantize import token_groups, value_group

TOKENS = 64  # a group of K has at most 47


@triton.jit
def _encode(x, low, high, TOP: tl.constexpr):
    """Codes in fp32, the scale and the minimum in fp16; `low` and `high` broadcast to `x`."""
    low = low.to(tl.float16).to(tl.float32)
    # Divided as IEEE says, not by a reciprocal: the codes are compared with those of a CPU.
    scale = tl.div_rn(high - low, tl.full(low.shape, TOP, tl.float32)).to(tl.float16)
    step = scale.to(tl.float32)
    divisor = tl.where(step > 0, step, 1.0) + tl.zeros(x.shape, tl.float32)
    ratio = tl.where(step > 0, tl.div_rn(x - low, divisor), 0.0)
    # 1.5 * 2^23 leaves no room for a fraction: rounds half to even.
    ratio = tl.minimum(tl.maximum(ratio, -1.0), 256.0)
    codes = (ratio + 12582912.0) - 12582912.0
    return tl.minimum(tl.maximum(codes, 0.0), TOP), scale, low.to(tl.float16)


@triton.jit
def pack_group(
    k_ptr, v_ptr, k_codes_ptr, k_scales_ptr, v_codes_ptr, v_scales_ptr,
    tokens, groups,
    DIM: tl.constexpr, PADDED: tl.constexpr, BITS: tl.constexpr, V_GROUP: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """One token group of one plane (a KV head of a layer) of `[planes, tokens, DIM]`."""
    TOP: tl.constexpr = 2**BITS - 1
    HALF: tl.constexpr = DIM // 2
    GROUPS: tl.constexpr = DIM // V_GROUP
    ROW: tl.constexpr = HALF if BITS == 4 else DIM
    group = tl.program_id(0).to(tl.int64)
    plane = tl.program_id(1).to(tl.int64)
    end = tl.where(group == groups - 1, tokens, group * 32 + 32)
    token = group * 32 + tl.arange(0, TOKENS)
    channel = tl.arange(0, PADDED)
    live = token < end
    inside = channel < HALF
    mask = live[:, None] & inside[None, :]
    at = (plane * tokens + token)[:, None] * DIM + channel[None, :]
    code_at = (plane * tokens + token)[:, None] * ROW + channel[None, :]
    infinity = float("inf")

    scale_at = k_scales_ptr + (plane * groups + group) * DIM + channel[None, :]
    planes = tl.num_programs(1).to(tl.int64)
    spacing = planes * groups * DIM
    left = tl.load(k_ptr + at, mask=mask, other=0.0).to(tl.float32)
    right = tl.load(k_ptr + at + HALF, mask=mask, other=0.0).to(tl.float32)
    low = tl.min(tl.where(mask, left, infinity), axis=0)[None, :]
    high = tl.max(tl.where(mask, left, -infinity), axis=0)[None, :]
    codes, scale, low = _encode(
        left, tl.where(inside[None, :], low, 0.0), tl.where(inside[None, :], high, 0.0), TOP
    )
    tl.store(scale_at, scale, mask=inside[None, :])
    tl.store(scale_at + spacing, low, mask=inside[None, :])
    low = tl.min(tl.where(mask, right, infinity), axis=0)[None, :]
    high = tl.max(tl.where(mask, right, -infinity), axis=0)[None, :]
    others, scale, low = _encode(
        right, tl.where(inside[None, :], low, 0.0), tl.where(inside[None, :], high, 0.0), TOP
    )
    tl.store(scale_at + HALF, scale, mask=inside[None, :])
    tl.store(scale_at + HALF + spacing, low, mask=inside[None, :])
    if BITS == 4:
        tl.store(k_codes_ptr + code_at, (codes + others * 16.0).to(tl.uint8), mask=mask)
    else:
        tl.store(k_codes_ptr + code_at, codes.to(tl.uint8), mask=mask)
        tl.store(k_codes_ptr + code_at + HALF, others.to(tl.uint8), mask=mask)

    left = tl.load(v_ptr + at, mask=mask, other=0.0).to(tl.float32)
    right = tl.load(v_ptr + at + HALF, mask=mask, other=0.0).to(tl.float32)
    codes = tl.zeros((TOKENS, PADDED), tl.float32)
    others = tl.zeros((TOKENS, PADDED), tl.float32)
    spacing = planes * tokens * GROUPS
    for index in tl.static_range(GROUPS):
        in_left = (channel // V_GROUP == index)[None, :] & mask
        in_right = ((channel + HALF) // V_GROUP == index)[None, :] & mask
        low = tl.minimum(
            tl.min(tl.where(in_left, left, infinity), axis=1),
            tl.min(tl.where(in_right, right, infinity), axis=1),
        )[:, None]  # [TOKENS, 1]
        high = tl.maximum(
            tl.max(tl.where(in_left, left, -infinity), axis=1),
            tl.max(tl.where(in_right, right, -infinity), axis=1),
        )[:, None]
        low = tl.where(live[:, None], low, 0.0)
        high = tl.where(live[:, None], high, 0.0)
        of_left, scale, minimum = _encode(left, low, high, TOP)
        of_right, _, _ = _encode(right, low, high, TOP)
        codes = tl.where(in_left, of_left, codes)
        others = tl.where(in_right, of_right, others)
        v_scale_at = v_scales_ptr + (plane * tokens + token)[:, None] * GROUPS + index
        tl.store(v_scale_at, scale, mask=live[:, None])
        tl.store(v_scale_at + spacing, minimum, mask=live[:, None])
    if BITS == 4:
        tl.store(v_codes_ptr + code_at, (codes + others * 16.0).to(tl.uint8), mask=mask)
    else:
        tl.store(v_codes_ptr + code_at, codes.to(tl.uint8), mask=mask)
        tl.store(v_codes_ptr + code_at + HALF, others.to(tl.uint8), mask=mask)


def quantize_pack(k: Tensor, v: Tensor, bits: Literal[4, 8]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `mnemos.attention.kernels.dispatch.quantize_pack`."""
    *lead, tokens, dim = k.shape
    planes = k.numel() // (tokens * dim)
    groups = len(token_groups(tokens))
    row, v_groups = dim * bits // 8, dim // value_group(dim)
    k_codes, v_codes = (torch.empty(*lead, tokens, row, dtype=torch.uint8, device=k.device) for _ in range(2))
    k_scales = torch.empty(2, *lead, groups, dim, dtype=torch.float16, device=k.device)
    v_scales = torch.empty(2, *lead, tokens, v_groups, dtype=torch.float16, device=k.device)
    pack_group[(groups, planes)](
        k, v, k_codes, k_scales, v_codes, v_scales, tokens, groups,
        DIM=dim, PADDED=triton.next_power_of_2(dim // 2), BITS=bits, V_GROUP=value_group(dim), TOKENS=TOKENS,
        num_warps=8 if dim > 128 else 4,
    )  # fmt: skip
    return k_codes, k_scales, v_codes, v_scales
