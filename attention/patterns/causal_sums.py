"""Attention without a softmax: weights that are products of features, summed chunk by chunk."""

import torch
from torch import Tensor
from torch.nn import functional


def causal_average(
    q: Tensor, k: Tensor, v: Tensor, chunk: int, before: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Averages of values, weighted by `q @ k` of non-negative features, over each token and those before it.

    Inside a chunk the weights are written out; what came before is one matrix per head, the sum of `k v^T`. A
    column of ones beside v sums up the weights themselves.

    Args:
        q: [batch, heads, tokens, features].
        k: [batch, kv_heads, tokens, features], zero where padded.
        v: [batch, kv_heads, tokens, head_dim].
        chunk: tokens of a chunk.
        before: the sums over earlier tokens, `[batch, kv_heads, features, head_dim + 1]`.

    Returns:
        [batch, heads, tokens, head_dim], zero where all weights are; and the sums after the last token.
    """
    (batch, heads, tokens, features), kv_heads = q.shape, k.shape[1]
    chunk = min(chunk, tokens)
    chunks = -(-tokens // chunk)
    v = functional.pad(v, (0, 1), value=1.0)  # [..., head_dim + 1]
    # Query heads of a group are rows of one product: [batch, kv_heads, chunks, group * chunk, features].
    rows = torch.unflatten(_chunked(q, chunks, chunk), 1, (kv_heads, -1)).transpose(2, 3).flatten(3, 4)
    k, v = _chunked(k, chunks, chunk), _chunked(v, chunks, chunk)
    added = k.mT @ v  # [batch, kv_heads, chunks, features, head_dim + 1]
    if before is None:
        before = added.new_zeros(batch, kv_heads, features, added.shape[-1])
    sums = torch.cat((before[:, :, None], added), dim=2).cumsum(2)
    earlier = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).tril()
    weights = (rows @ k.mT).masked_fill(~earlier.repeat(heads // kv_heads, 1), 0.0)
    summed = weights @ v + rows @ sums[:, :, :-1]
    summed = (
        torch.unflatten(summed, 3, (-1, chunk)).transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :, :tokens]
    )
    values, total = summed[..., :-1], summed[..., -1:]
    return values / total.masked_fill(total == 0, 1.0), sums[:, :, -1]


def operations(tokens: int, chunk: int, heads: int, kv_heads: int, features: int, head_dim: int) -> int:
    """Multiply-adds of `causal_average`."""
    chunk = min(chunk, tokens)
    rows, width = -(-tokens // chunk) * chunk, head_dim + 1
    inside = rows * heads * chunk * (features + width)
    return inside + rows * (heads + kv_heads) * features * width


def _chunked(x: Tensor, chunks: int, chunk: int) -> Tensor:
    """[batch, heads, tokens, width] to [batch, heads, chunks, chunk, width], zeros behind."""
    return torch.unflatten(functional.pad(x, (0, 0, 0, chunks * chunk - x.shape[2])), 2, (chunks, chunk))
