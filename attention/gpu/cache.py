"""Working memory on a device, in front of which paged memories are read where they lie.

Slots are counted as `KVCache` counts them, those of memories included, so that callers see no difference. The
buffers hold prefix and working memory only, and grow with what is in them.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mnemos.attention.config import ModelConfig
from mnemos.attention.gpu.reads import PagedSpan, ReadSet, paged
from mnemos.attention.kv import KVCache, Span, SpanKV
from mnemos.attention.rope import Rotary
from mnemos.errors import ContextOverflowError

_FIRST_SLOTS = 512  # of new buffers


class Scratch:
    """Room for one layer's memories between prefix and working memory, shared by the caches of a decoder: one
    pass runs at a time, and overwrites it at its end.
    """

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        self._shape = (config.kv_heads, config.head_dim)
        self._dtype, self._device = dtype, device
        self._kept = torch.empty(2, config.kv_heads, 0, config.head_dim, dtype=dtype, device=device)

    def room(self, slots: int) -> tuple[Tensor, Tensor]:
        """Keys and values `[kv_heads, slots, head_dim]`, of any content."""
        if self._kept.shape[2] < slots:
            heads, dim = self._shape
            self.zero_()
            rows = max(slots, 2 * self._kept.shape[2])
            with torch.inference_mode(False):
                self._kept = torch.empty(2, heads, rows, dim, dtype=self._dtype, device=self._device)
        return self._kept[0, :, :slots], self._kept[1, :, :slots]

    def zero_(self) -> None:
        """Overwrite it: it holds a pass's memories."""
        self._kept.zero_()


class DeviceCache(KVCache):
    """A `KVCache` whose buffers are on a device and whose memories stay quantised in the pool."""

    def __init__(
        self,
        config: ModelConfig,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        layer_rotaries: Sequence[Rotary],
        scratch: Scratch,
        forget: Callable[[int], None],
    ) -> None:
        """`layer_rotaries` are those of each layer, with tables on the device. `forget(serial)` is told of a
        read set that is read no more.
        """
        super().__init__(config, 0, dtype)
        self.capacity = capacity
        self.reads: ReadSet | None = None
        self._layer_rotaries, self._scratch, self._forget = layer_rotaries, scratch, forget
        self._shape = (config.layers, config.kv_heads, config.head_dim)
        self._dtype, self._device = dtype, device
        self.k, self.v = self._buffers(min(capacity, _FIRST_SLOTS))

    def reserve(self, tokens: int) -> slice:
        """As `KVCache.reserve`; the buffers grow to hold them."""
        slots = super().reserve(tokens)
        self._grow(self.held(slots.stop))
        return slots

    def held(self, slot: int) -> int:
        """Where in the buffers a slot lies, or would lie, that is none of a memory's."""
        return slot if slot <= self.memory_start else slot - self.memory_tokens

    def page_in(
        self,
        spans: Sequence[Span],
        *,
        temperature: float = 1.0,
        mass_scale: float = 1.0,
        stride: float = 0.0,
    ) -> None:
        """As `KVCache.page_in`; the spans stay where they are, until `zero_`."""
        offsets, taken = self._places(spans, stride)
        if not spans:
            return
        there = [span for span in spans if isinstance(span, PagedSpan)]
        if len(there) < len(spans):
            there = paged([span.dense() for span in spans], self._device)
        self.reads = ReadSet(there, offsets, temperature, mass_scale)
        self.memory_start = self.length
        self.length += self.reads.tokens
        self.memory_end = self.length
        self.next_position += taken
        self.temperature, self.mass_scale = temperature, mass_scale

    def wait_for_reads(self) -> None:
        """The current stream waits until all of the memories have arrived."""
        if self.reads is not None:
            for layer in range(len(self._layer_rotaries)):
                self.reads.wait(layer)

    def write(self, layer: int, slots: slice, k: Tensor, v: Tensor) -> None:
        """As `KVCache.write`."""
        super().write(layer, slice(self.held(slots.start), self.held(slots.stop)), k, v)

    def seen(self, layer: int, start: int, end: int) -> tuple[Tensor, Tensor]:
        """As `KVCache.seen`; memories are dequantised into the decoder's scratch, for this pass only."""
        if self.reads is None:
            return super().seen(layer, start, end)
        if start or end < self.memory_end:
            raise ValueError("what is read behind memories sees all of them")
        self.reads.wait(layer)
        k, v = self._scratch.room(end)
        first, last = self.memory_start, self.memory_end
        for room, buffer in ((k, self.k), (v, self.v)):
            room[:, :first] = buffer[layer, :, :first]
            room[:, last:] = buffer[layer, :, first : self.held(end)]
        self.reads.dense(layer, self._layer_rotaries[layer], k[:, first:last], v[:, first:last])
        return k, v

    def snapshot(self, start: int, end: int) -> SpanKV:
        """As `KVCache.snapshot`, of slots that are all in front of the memories or all behind them."""
        if self.memory_tokens and start < self.memory_end and end > self.memory_start:
            raise ValueError("a snapshot holds no memories: they are in the pool")
        return super().snapshot(self.held(start), self.held(end))

    def zero_(self) -> None:
        """Overwrite everything and empty the cache; its memories are no longer read."""
        if self.reads is not None:
            self._forget(self.reads.serial)
            self.reads.release()
            self.reads = None
        self.k.zero_()
        self.v.zero_()
        self.length = self.used = self.next_position = self.memory_start = self.memory_end = 0

    def _place(self, span: SpanKV, offset: int = 0) -> None:
        if self.length + span.tokens <= self.capacity:
            self._grow(self.length + span.tokens)
        super()._place(span, offset)

    def _grow(self, slots: int) -> None:
        have = self.k.shape[2]
        if slots <= have:
            return
        k, v = self._buffers(max(slots, min(2 * have, self.capacity)))
        for new, old in ((k, self.k), (v, self.v)):
            new[:, :, :have] = old
            old.zero_()
        self.k, self.v = k, v

    def _buffers(self, slots: int) -> tuple[Tensor, Tensor]:
        layers, heads, dim = self._shape
        try:
            with torch.inference_mode(False):  # written to in and outside of it
                both = [
                    torch.zeros(layers, heads, slots, dim, dtype=self._dtype, device=self._device)
                    for _ in range(2)
                ]
        except torch.OutOfMemoryError:
            size = 2 * layers * heads * slots * dim * self._dtype.itemsize
            raise ContextOverflowError(
                f"the device has no room for {size >> 20} MiB of working memory; use shorter sessions, or "
                "set MNEMOS_DEVICE=cpu"
            ) from None
        return both[0], both[1]
