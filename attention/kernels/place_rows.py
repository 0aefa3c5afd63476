"""Queries, keys and values of a decode step in one launch: norm of heads, RoPE, and into the caches."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mnemos.attention.kernels.working_rows import WorkingRows


@triton.jit
def place_heads(
    qkv_ptr, cis_ptr, source_ptr, norm_ptr, fields_ptr, out_ptr,
    rows, heads, kv_heads, layer, eps,
    DIM: tl.constexpr, HALF: tl.constexpr, HAS_NORM: tl.constexpr,
):  # fmt: skip
    """One head of one row, or of a row that asks memories again from another place."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    if row >= rows and head >= heads:
        return
    source = row
    if row >= rows:
        source = tl.load(source_ptr + row - rows).to(tl.int64)
    pair = tl.arange(0, HALF)
    mask = pair < DIM // 2
    at = qkv_ptr + (source * (heads + 2 * kv_heads) + head) * DIM + 2 * pair
    first = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(at + 1, mask=mask, other=0.0).to(tl.float32)
    if head < heads + kv_heads:
        if HAS_NORM:
            mean = tl.sum(first * first + second * second, axis=0) / DIM
            inverse = 1.0 / tl.sqrt(mean + eps)
            norm_at = norm_ptr + head * DIM + 2 * pair
            first = first * inverse * tl.load(norm_at, mask=mask, other=0.0)
            second = second * inverse * tl.load(norm_at + 1, mask=mask, other=0.0)
        cosine = tl.load(cis_ptr + row * DIM + 2 * pair, mask=mask, other=0.0)
        sine = tl.load(cis_ptr + row * DIM + 2 * pair + 1, mask=mask, other=0.0)
        turned = first * cosine - second * sine
        second = first * sine + second * cosine
        first = turned
    KIND: tl.constexpr = out_ptr.dtype.element_ty
    if head < heads:
        out_at = out_ptr + (row * heads + head) * DIM + 2 * pair
        tl.store(out_at, first.to(KIND), mask=mask)
        tl.store(out_at + 1, second.to(KIND), mask=mask)
    else:
        slot = tl.load(fields_ptr + rows + row)  # fields by their numbers in `working_rows`
        length = tl.load(fields_ptr + 2 * rows + row)
        capacity = tl.load(fields_ptr + 8 * rows + row)
        if head < heads + kv_heads:
            address = tl.load(fields_ptr + 6 * rows + row)
            kv_head = head - heads
        else:
            address = tl.load(fields_ptr + 7 * rows + row)
            kv_head = head - heads - kv_heads
        buffer = address.to(tl.pointer_type(KIND))
        out_at = buffer + ((layer * kv_heads + kv_head) * capacity + slot) * DIM + 2 * pair
        live = mask & (length + pair * 0 > 0)  # a vector: the interpreter takes no scalar in a mask
        tl.store(out_at, first.to(KIND), mask=live)
        tl.store(out_at + 1, second.to(KIND), mask=live)


def place_rows(
    qkv: Tensor,
    cis: Tensor,
    source: Tensor,
    norm: Tensor | None,
    eps: float,
    working: WorkingRows,
    layer: int,
) -> Tensor:
    """As `mnemos.attention.kernels.dispatch.place_rows`."""
    rows, asked, dim = len(qkv), len(cis), cis.shape[1]
    kv_heads = working.kv_heads
    heads = qkv.shape[1] // dim - 2 * kv_heads
    out = torch.empty(asked, heads, dim, dtype=qkv.dtype, device=qkv.device)
    place_heads[(asked, heads + 2 * kv_heads)](
        qkv, cis, source, cis if norm is None else norm, working.fields, out,
        rows, heads, kv_heads, layer, eps,
        DIM=dim, HALF=triton.next_power_of_2(dim // 2), HAS_NORM=norm is not None, num_warps=1,
    )  # fmt: skip
    return out
