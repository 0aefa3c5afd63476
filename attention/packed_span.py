"""KV of a memory as it lies in the bank, in four or eight bits: expanded where it is attended to.

Held so, seven times as many memories have room, and paging one in writes each number once.
"""

import ctypes

import numpy as np
import torch
from torch import Tensor

from mnemos.attention.compiled_read import expand_kv
from mnemos.attention.kv import SpanKV
from mnemos.attention.rope import KeyRotation


class PackedSpan(SpanKV):
    """A span whose keys and values are made when they are asked for."""

    __slots__ = ("_at", "_bits", "_data", "_dtype", "_library", "_shape")
    _library: ctypes.CDLL
    _data: np.ndarray
    _at: list[int]
    _shape: tuple[int, int, int, int]
    _bits: int
    _dtype: torch.dtype

    def __init__(
        self,
        library: ctypes.CDLL,
        data: np.ndarray,
        sizes: tuple[int, int, int, int],
        shape: tuple[int, int, int, int],
        bits: int,
        dtype: torch.dtype,
    ) -> None:
        """`data` are the bytes of codes and scales of K, then of V, of `sizes` bytes, and belong to it;
        `shape` is `[layers, kv_heads, tokens, head_dim]`.
        """
        object.__setattr__(self, "_library", library)
        object.__setattr__(self, "_data", data)
        start = data.ctypes.data
        ends = np.cumsum(sizes).tolist()
        object.__setattr__(self, "_at", [start, *(start + end for end in ends[:-1])])
        object.__setattr__(self, "_shape", shape)
        object.__setattr__(self, "_bits", bits)
        object.__setattr__(self, "_dtype", dtype)

    def write_to(self, k: Tensor, v: Tensor, rotation: KeyRotation | None = None, positions: int = 0) -> None:
        """As `SpanKV.write_to`, each number once."""
        if rotation is None or k.dtype != torch.float32:
            expand_kv(self._library, self._at, self._bits, k, v)
            if rotation is not None:
                rotation.turn_(k, positions)
            return
        expand_kv(self._library, self._at, self._bits, k, v, rotation.turns(positions))

    def expanded(self) -> SpanKV:
        """The same numbers in the compute dtype."""
        k, v = torch.empty(2, *self._shape, dtype=self._dtype).unbind()
        self.write_to(k, v)
        return SpanKV(k, v)

    def dense(self) -> SpanKV:
        return self.expanded()

    def to(self, device: torch.device) -> SpanKV:
        return self.expanded().to(device)

    @property
    def k(self) -> Tensor:
        return self.expanded().k

    @property
    def v(self) -> Tensor:
        return self.expanded().v

    @property
    def tokens(self) -> int:
        return self._shape[2]

    @property
    def nbytes(self) -> int:
        return self._data.nbytes

    def zero_(self) -> None:
        """As `SpanKV.zero_`: codes and scales of zero are zeros."""
        self._data.fill(0)
