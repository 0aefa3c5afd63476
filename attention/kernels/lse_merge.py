"""Two parts of one attention joined by their log-sum-exps, in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def merge_rows(
    memory_ptr, memory_lse_ptr, working_ptr, working_lse_ptr, out_ptr, rows, mass_scale,
    DIM: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`BLOCK` rows of `[rows, DIM]`."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = row < rows
    channel = tl.arange(0, PADDED)
    nothing = float("-inf")
    memory_lse = tl.load(memory_lse_ptr + row, mask=live, other=nothing)
    memory_lse = tl.where(memory_lse == nothing, nothing, memory_lse * mass_scale)
    working_lse = tl.load(working_lse_ptr + row, mask=live, other=nothing)
    top = tl.maximum(memory_lse, working_lse)
    top = tl.where(top == nothing, 0.0, top)
    of_memory = tl.exp(memory_lse - top)  # [BLOCK]
    of_working = tl.exp(working_lse - top)
    total = tl.maximum(of_memory + of_working, 1e-38)
    at = row[:, None] * DIM + channel[None, :]
    mask = live[:, None] & (channel < DIM)[None, :]
    # An empty part is not read: what it holds may be NaN.
    memory = tl.load(memory_ptr + at, mask=mask & (of_memory > 0)[:, None], other=0.0).to(tl.float32)
    working = tl.load(working_ptr + at, mask=mask & (of_working > 0)[:, None], other=0.0).to(tl.float32)
    out = (memory * of_memory[:, None] + working * of_working[:, None]) / total[:, None]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=mask)


def lse_merge(
    memory: Tensor, memory_lse: Tensor, working: Tensor, working_lse: Tensor, mass_scale: float
) -> Tensor:
    """As `mnemos.attention.kernels.dispatch.lse_merge`."""
    rows, dim = working.shape
    out = torch.empty_like(working)
    merge_rows[(triton.cdiv(rows, 4),)](
        memory, memory_lse, working, working_lse, out, rows, mass_scale,
        DIM=dim, PADDED=triton.next_power_of_2(dim), BLOCK=4, num_warps=4,
    )  # fmt: skip
    return out
