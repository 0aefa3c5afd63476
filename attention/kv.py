"""The KV buffer a decoder attends to: a frozen prefix, paged memories, then the working memory.

One buffer per layer holds the three parts side by side, so that a decode step is one product over all of
them:

    slots   [ prefix | memories ........ | working memory -> ]
    places  0 .. P-1   P .. P+longest-1    P+longest ...

Memories share the places that start right after the prefix ("parallel"), or each starts a part of its
length behind the one before ("staggered"); the working memory goes on after the last place taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mnemos.attention.config import ModelConfig
from mnemos.attention.rope import KeyRotation
from mnemos.errors import ContextOverflowError


class Span(Protocol):
    """One span of a memory, wherever its keys and values are."""

    @property
    def tokens(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    def dense(self) -> "SpanKV":
        """Its keys and values as tensors."""


@dataclass(frozen=True, slots=True)
class SpanKV:
    """Keys (after RoPE) and values of one span of a memory, in the compute dtype."""

    k: Tensor  # [layers, kv_heads, tokens, head_dim]
    v: Tensor  # [layers, kv_heads, tokens, head_dim]

    @property
    def tokens(self) -> int:
        return self.k.shape[2]

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes

    def dense(self) -> "SpanKV":
        return self

    def to(self, device: torch.device) -> "SpanKV":
        """The same on a device."""
        return SpanKV(self.k.to(device), self.v.to(device))

    def write_to(self, k: Tensor, v: Tensor, rotation: KeyRotation | None = None, positions: int = 0) -> None:
        """Copies both into tensors of their shape, which may be a part of a cache, keys as they are so many
        positions further on.
        """
        k.copy_(self.k)
        v.copy_(self.v)
        if rotation is not None:
            rotation.turn_(k, positions)

    def zero_(self) -> None:
        """Overwrite both tensors, so that erased content does not linger in freed memory."""
        self.k.zero_()
        self.v.zero_()


class KVCache:
    """Preallocated keys and values of every layer, `[layers, kv_heads, capacity, head_dim]` each."""

    def __init__(
        self, config: ModelConfig, capacity: int, dtype: torch.dtype, rotation: KeyRotation | None = None
    ) -> None:
        """`rotation` is needed where memories are staggered."""
        self._rotation = rotation
        shape = (config.layers, config.kv_heads, capacity, config.head_dim)
        self.k = torch.empty(shape, dtype=dtype)
        self.v = torch.empty(shape, dtype=dtype)
        self.layer_k = self.k.unbind()  # of each layer: [kv_heads, capacity, head_dim]
        self.layer_v = self.v.unbind()
        self.capacity = capacity
        self.max_positions = config.max_positions
        self.length = 0
        self.used = 0  # slots ever written: what `zero_` has to overwrite
        self.next_position = 0
        self.memory_start = 0
        self.memory_end = 0
        self.temperature = 1.0
        self.mass_scale = 1.0

    @property
    def memory_tokens(self) -> int:
        return self.memory_end - self.memory_start

    @property
    def is_weighed(self) -> bool:
        """Whether the memory part's scores differ from plain attention's."""
        return self.temperature != 1.0 or self.mass_scale != 1.0

    def reserve(self, tokens: int) -> slice:
        """The next free slots, or `ContextOverflowError` when they don't fit the buffer or the model's
        window.
        """
        end = self.length + tokens
        if end > self.capacity:
            raise ContextOverflowError(
                f"{tokens} more tokens do not fit: {self.length} of {self.capacity} slots are taken; "
                "shorten the message or recall fewer memories"
            )
        if self.next_position + tokens > self.max_positions:
            raise ContextOverflowError(
                f"the model's window of {self.max_positions} tokens is full; shorten the message or start a "
                "session"
            )
        self.used = max(self.used, end)
        return slice(self.length, end)

    def advance(self, tokens: int) -> None:
        self.length += tokens
        self.next_position += tokens

    def load_prefix(self, prefix: SpanKV) -> None:
        """Put the frozen prefix at the front of an empty cache."""
        if self.length:
            raise ValueError("a prefix goes into an empty cache")
        self._place(prefix)
        self.next_position = self.length

    def page_in(
        self,
        spans: Sequence[Span],
        *,
        temperature: float = 1.0,
        mass_scale: float = 1.0,
        stride: float = 0.0,
    ) -> None:
        """Put memories behind the prefix, all of them or none. Call once, before any working-memory token.

        `temperature` and `mass_scale` are the two constants of adaptive parallel encoding (arXiv
        2502.05431): attention to the memory part is taken at `temperature`, and that part's log-sum-exp is
        multiplied by `mass_scale`. Each span starts `stride` times the length of the one before behind that
        one's start: 0 is parallel, 1 one after another. Raises `ContextOverflowError` when they don't fit.
        """
        offsets, taken = self._places(spans, stride)
        start = self.next_position
        self.memory_start = self.length
        for offset, span in zip(offsets, spans, strict=True):
            # A packed one is expanded where it will be attended to.
            self._place(span if isinstance(span, SpanKV) else span.dense(), offset)
        self.memory_end = self.length
        self.next_position = start + taken
        self.temperature, self.mass_scale = temperature, mass_scale

    def _places(self, spans: Sequence[Span], stride: float) -> tuple[list[int], int]:
        """How far behind the first span each one starts, and how many places all take. Raises where they
        don't fit.
        """
        if self.length != self.next_position:
            raise ValueError("memories are paged in before the working memory")
        start = self.next_position
        offsets = _offsets(spans, stride)
        taken = max((offset + span.tokens for offset, span in zip(offsets, spans, strict=True)), default=0)
        if start + taken > self.max_positions:
            raise ContextOverflowError(
                f"memories over {taken} places behind a prefix of {start} do not fit the model's window of "
                f"{self.max_positions} tokens; recall fewer memories, or use a model with a longer window"
            )
        total = sum(span.tokens for span in spans)
        if self.length + total > self.capacity:
            raise ContextOverflowError(
                f"{total} memory tokens do not fit: {self.length} of {self.capacity} slots are taken; "
                "recall fewer memories"
            )
        return offsets, taken

    def write(self, layer: int, slots: slice, k: Tensor, v: Tensor) -> None:
        """Keys and values `[kv_heads, tokens, head_dim]` of one layer into reserved slots."""
        self.k[layer, :, slots] = k
        self.v[layer, :, slots] = v

    def seen(self, layer: int, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the slots `[start, end)` of one layer, `[kv_heads, slots, head_dim]` each."""
        return self.k[layer, :, start:end], self.v[layer, :, start:end]

    def truncate(self, length: int, next_position: int) -> None:
        """Go back to an earlier point of the working memory; both values as read from the cache at that
        point.
        """
        if length < self.memory_end or length > self.length:
            raise ValueError("can only go back to a point inside the working memory")
        self.length, self.next_position = length, next_position

    def zero_(self) -> None:
        """Overwrite everything and empty the cache."""
        self.k[:, :, : self.used].zero_()
        self.v[:, :, : self.used].zero_()
        self.length = self.used = self.next_position = self.memory_start = self.memory_end = 0

    def snapshot(self, start: int, end: int) -> SpanKV:
        """A copy of the slots `[start, end)`."""
        return SpanKV(self.k[:, :, start:end].clone(), self.v[:, :, start:end].clone())

    def _place(self, span: SpanKV, offset: int = 0) -> None:
        end = self.length + span.tokens
        if end > self.capacity:
            raise ContextOverflowError(
                f"{span.tokens} memory tokens do not fit: {self.length} of {self.capacity} slots are taken; "
                "recall fewer memories"
            )
        if offset and self._rotation is None:
            raise ValueError("a cache without a rotation holds parallel memories only")
        k, v = self.k[:, :, self.length : end], self.v[:, :, self.length : end]
        span.write_to(k, v, self._rotation if offset else None, offset)
        self.length = end
        self.used = max(self.used, end)


def _offsets(spans: Sequence[Span], stride: float) -> list[int]:
    """How many places behind the first span's start each one starts."""
    starts = [0.0]
    for span in spans:
        starts.append(starts[-1] + stride * span.tokens)
    return [round(start) for start in starts[:-1]]
