"""Pages of memories in host memory, pinned for a CUDA device: from here to the device is a plain copy."""

import numpy as np
import torch
from torch import Tensor

from mnemos.attention.config import ModelConfig
from mnemos.attention.gpu.free_pages import runs_of
from mnemos.attention.gpu.page_room import Entry, PageRoom, page_tensor, zero_pages
from mnemos.attention.kernels.page_layout import Bytes, PageLayout, PayloadPages


class HostPool(PageRoom):
    """Memories as pages in host memory, within a budget. Its `DevicePool` guards it against threads.

    What is held here is being copied; it is let go of when the copies are over.
    """

    def __init__(
        self, config: ModelConfig, bits: int, *, budget_bytes: int, device: torch.device | str = "cpu"
    ) -> None:
        """`device` is the one that its pages go to. The allocator of pinned memory rounds up to a power of
        two.
        """
        pinned = torch.device(device).type == "cuda"

        def make(shape: tuple[int, int, int]) -> Tensor:
            return torch.zeros(shape, dtype=torch.uint8, pin_memory=pinned)

        layout = PageLayout(bits, config.kv_heads, config.head_dim)
        super().__init__(page_tensor(config.layers, layout, budget_bytes, make), self._zero)
        self.array: Bytes = self.pool.numpy()  # [layers, pages, page_bytes], the same memory
        self.hits = 0
        self.misses = 0

    def _zero(self, entry: Entry) -> None:
        zero_pages(self.pool, entry)

    def write(self, entry: Entry, payload: PayloadPages, layers: range) -> None:
        """Some layers of a payload into the pages of its entry."""
        target = self.array[layers.start : layers.stop]  # [layers, pages, page_bytes]
        runs = list(runs_of(entry.pages))
        if len(runs) == 1:
            first, count = runs[0]
            payload.write(target[:, first : first + count], layers)
            return
        pages = np.empty((len(layers), len(entry.pages), self.array.shape[2]), np.uint8)
        payload.write(pages, layers)
        target[:, entry.pages] = pages
