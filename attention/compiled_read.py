"""What the bank keeps of memories, read by the kernels of `native/read.c`: KV expanded, routing keys weighed.

Each has a plain twin (`quantize.py`, `block_mass.py`) for where there is no compiler.
"""

import ctypes
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from mnemos.attention.compiled import SPAN_KEYS, Packed
from mnemos.attention.quantize import value_group

_LANES = 8
_LONG_TOKENS = 64
_MOST_DIM = 512
_EXPANDED = (torch.float32, torch.bfloat16)


def can_expand(dim: int, dtype: torch.dtype) -> bool:
    """Whether `expand_kv` knows heads of that size and numbers of that kind."""
    return dim <= _MOST_DIM and dim % 2 == 0 and dtype in _EXPANDED


def can_weigh(dim: int) -> bool:
    """Whether `weighed_spans` knows keys of that size."""
    return dim <= _MOST_DIM


def expand_kv(
    library: ctypes.CDLL, at: Sequence[int], bits: int, k: Tensor, v: Tensor, turns: Tensor | None = None
) -> None:
    """Fills `k` and `v [layers, kv_heads, tokens, head_dim]`, or such parts of a cache. `at` are the
    addresses of the codes and scales of K, then of V; the caller keeps what lies there, and has checked its
    length. `turns [layers, head_dim]`, cosine and sine of each pair, turn keys in fp32 on.
    """
    layers, kv_heads, tokens, dim = k.shape
    of_cache = (kv_heads * k.stride(1), k.stride(1), dim, 1)
    assert k.stride() == v.stride() == of_cache, "slots of a cache"
    packed = Packed(
        *at,
        k.data_ptr(),
        v.data_ptr(),
        bits,
        layers * kv_heads,
        tokens,
        dim,
        k.stride(1),
        value_group(dim),
        k.dtype == torch.bfloat16,
        None if turns is None else turns.data_ptr(),
        kv_heads,
    )
    threads = torch.get_num_threads() if tokens > _LONG_TOKENS else 1  # to start one takes as long
    if library.mnemos_expand_kv(ctypes.byref(packed), threads):
        raise MemoryError("no memory to expand KV in")


def weighed_spans(
    library: ctypes.CDLL,
    rows: Sequence[Tensor],
    codes: Sequence[Tensor],
    scales: Sequence[Tensor],
    span_tokens: Sequence[Sequence[int]],
) -> Tensor:
    """As `block_mass.span_sums`, of records with keys in eight bits: `[spans]`.

    `codes` are `[tokens, key_heads, head_dim]` of each record, `scales [key_heads, head_dim]`.
    """
    heads, dim = scales[0].shape
    spans = np.empty(sum(map(len, span_tokens)), SPAN_KEYS)
    owner = np.repeat(np.arange(len(codes)), [len(sizes) for sizes in span_tokens])
    first = [start for sizes in span_tokens for start in accumulate(sizes[:-1], initial=0)]
    spans["tokens"] = [size for sizes in span_tokens for size in sizes]
    spans["stride"] = heads * dim
    of_codes = np.array([each.data_ptr() for each in codes], np.uint64)[owner]
    of_codes += np.array(first, np.uint64) * np.uint64(heads * dim)
    of_scales = np.array([each.data_ptr() for each in scales], np.uint64)[owner]
    total = np.zeros(len(spans), np.float32)
    for head, queries in enumerate(rows):
        spans["codes"] = of_codes + np.uint64(head * dim)
        spans["scale"] = of_scales + np.uint64(4 * head * dim)
        total += _weighed(library, spans, queries.numpy())
    return torch.from_numpy(total)


def _weighed(library: ctypes.CDLL, spans: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Softmax mass of each span, summed over `queries [rows, head_dim]`: `[spans]`."""
    count, dim = queries.shape
    rows = -(-count // _LANES) * _LANES
    turned = np.zeros((dim, rows), np.float32)
    turned[:, :count] = queries.T
    sums, tops = (np.empty((len(spans), rows), np.float32) for _ in range(2))
    failed = library.mnemos_route_mass(
        spans.ctypes.data,
        len(spans),
        turned.ctypes.data,
        rows,
        dim,
        sums.ctypes.data,
        tops.ctypes.data,
        torch.get_num_threads(),
    )
    if failed:
        raise MemoryError("no memory to weigh routing keys in")
    sums, tops = sums[:, :count], tops[:, :count]
    mass = np.exp(tops - tops.max(axis=0)) * sums
    weighed: np.ndarray = (mass / mass.sum(axis=0)).sum(axis=1)
    return weighed
