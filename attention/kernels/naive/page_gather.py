"""Scattered pages to one buffer, in plain torch."""

from torch import Tensor


def page_gather(source: Tensor, pages: Tensor, out: Tensor) -> None:
    """As `mnemos.attention.kernels.dispatch.page_gather`."""
    for start, end, size in pages.tolist():
        out[end : end + size] = source[start : start + size].to(out.device)
