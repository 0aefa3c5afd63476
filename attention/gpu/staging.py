"""Two layers of room in pinned memory, for pages that the host pool does not keep.

While one layer is being copied the next one is written: the double buffer of a page-in from plain bytes.
"""

from contextlib import suppress

import torch
from torch import Tensor

from mnemos.attention.gpu.streams import CopyStream, Mark
from mnemos.attention.kernels.page_layout import Bytes


class Staging:
    """Layer after layer through two buffers `[pages, page_bytes]`, which grow when a request is larger."""

    def __init__(self, page_bytes: int, device: torch.device, stream: CopyStream) -> None:
        self._page_bytes = page_bytes
        self._pinned = device.type == "cuda"
        self._stream = stream
        self._halves: list[Tensor] = []
        self._arrays: list[Bytes] = []
        self._sent: list[Mark | None] = [None, None]  # the last copy out of each half
        self._layer = -1

    def reserve(self, pages: int) -> None:
        """Room for as many; the transfer before must have been queued."""
        self._layer = -1
        if not self._halves or len(self._halves[0]) < pages:
            self.wipe()
            shape = (pages, self._page_bytes)
            with torch.inference_mode(False):  # they are overwritten in any mode
                self._halves = [self._zeros(shape) for _ in range(2)]
            self._arrays = [half.numpy() for half in self._halves]

    def _zeros(self, shape: tuple[int, int]) -> Tensor:
        if self._pinned:
            with suppress(RuntimeError):  # the host may pin no more: then the copies are slower
                return torch.zeros(shape, dtype=torch.uint8, pin_memory=True)
        return torch.zeros(shape, dtype=torch.uint8)

    def layer(self, layer: int) -> Tensor:
        return self._halves[layer % 2]

    def array(self, layer: int) -> Bytes:
        """Where to write a layer, once what was there has been copied."""
        if layer != self._layer:
            if self._layer >= 0:  # the copies of the layer before are queued by now
                self._sent[self._layer % 2] = self._stream.mark()
            self._layer = layer
            sent = self._sent[layer % 2]
            if sent is not None:
                sent.synchronize()
        return self._arrays[layer % 2]

    def finish(self) -> None:
        """The last layer's copies are queued."""
        if self._layer >= 0:
            self._sent[self._layer % 2] = self._stream.mark()
        self._layer = -1

    def wipe(self) -> None:
        """Wait for what is under way, then overwrite."""
        self._stream.mark().synchronize()
        for half in self._halves:
            half.zero_()
