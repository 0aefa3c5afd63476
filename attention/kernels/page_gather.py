"""Scattered pages to one buffer in one launch; the source may lie in pinned host memory."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # words of 4 bytes: 16 KiB a program, four loads of 16 bytes in flight for each of 256 threads
WARPS = 8


@triton.jit
def copy_pages(source_ptr, pages_ptr, out_ptr, BLOCK: tl.constexpr):
    """One block of one page; sizes and places are multiples of 16 bytes, the pointers are to words of 4."""
    page = tl.program_id(0).to(tl.int64)
    start = tl.multiple_of(tl.load(pages_ptr + page * 3) // 16 * 4, 4)
    end = tl.multiple_of(tl.load(pages_ptr + page * 3 + 1) // 16 * 4, 4)
    size = tl.multiple_of(tl.load(pages_ptr + page * 3 + 2) // 16 * 4, 4)
    word = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = word < size
    tl.store(out_ptr + end + word, tl.load(source_ptr + start + word, mask=live), mask=live)


def page_gather(source: Tensor, pages: Tensor, out: Tensor) -> None:
    """As `mnemos.attention.kernels.dispatch.page_gather`."""
    gather_listed(source, pages.to(out.device), int(pages[:, 2].max()), out)


def gather_listed(source: Tensor, pages: Tensor, longest: int, out: Tensor) -> None:
    """As `page_gather`, of pages that were checked and whose list is on the device already; the largest has
    `longest` bytes. Nothing waits for the host.
    """
    words = max(1, longest // 4)  # a grid has no side of zero
    copy_pages[(len(pages), triton.cdiv(words, BLOCK))](
        source.view(torch.int32), pages, out.view(torch.int32), BLOCK=BLOCK, num_warps=WARPS
    )
