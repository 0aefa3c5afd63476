"""Queries, keys and values of a decode step to where attention finds them, in plain torch."""

import torch
from torch import Tensor

from mnemos.attention.kernels.working_rows import LENGTH, SLOT, WorkingRows


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
    rows, dim = len(qkv), cis.shape[1]
    kv_heads = working.kv_heads
    heads = qkv.shape[1] // dim - 2 * kv_heads
    parts = qkv.view(rows, heads + 2 * kv_heads, dim)
    qk = parts[:, : heads + kv_heads].float()
    if norm is not None:
        qk = qk * torch.rsqrt(qk.square().mean(-1, keepdim=True) + eps) * norm
    whole = torch.arange(rows, device=qkv.device)
    rotated = _rotated(qk, cis[:rows])
    queries = torch.cat([rotated[:, :heads], _rotated(qk[source.long(), :heads], cis[rows:])])
    for row in whole.tolist():
        buffers = working.buffers[row]
        if buffers is not None and int(working.fields[LENGTH, row]):
            slot = int(working.fields[SLOT, row])
            buffers[0][layer, :, slot] = rotated[row, heads:].to(qkv.dtype)
            buffers[1][layer, :, slot] = parts[row, heads + kv_heads :]
    return queries.to(qkv.dtype)


def _rotated(x: Tensor, cis: Tensor) -> Tensor:
    """`x [rows, heads, dim]` in neighbouring pairs by `cis [rows, dim]`, cosines and sines in turn."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    factors = torch.view_as_complex(cis.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * factors[:, None]).flatten(-2)
