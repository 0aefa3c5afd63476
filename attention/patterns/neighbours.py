"""Nearest keys by faiss, and softmax attention to them."""

import torch
from torch import Tensor


def nearest(queries: Tensor, keys: Tensor, count: int) -> Tensor:
    """The `count` keys with the largest products with each query, best first, exactly.

    Args:
        queries: [heads, tokens, head_dim] float32 on the CPU.
        keys: [kv_heads, keys, head_dim], likewise. Each serves heads / kv_heads heads in turn.
        count: how many.

    Returns:
        [heads, tokens, count] int64, -1 behind the last where there are fewer keys.
    """
    heads, tokens, width = queries.shape
    found = torch.full((heads, tokens, count), -1, dtype=torch.int64)
    most = min(count, keys.shape[1])
    if most and tokens:
        import faiss

        groups = queries.reshape(len(keys), -1, width)
        parts = [
            faiss.knn(asking.numpy(), held.numpy(), most, metric=faiss.METRIC_INNER_PRODUCT)[1]
            for asking, held in zip(groups, keys, strict=True)
        ]
        found[..., :most] = torch.stack([torch.from_numpy(part) for part in parts]).view(heads, tokens, most)
    return found


def for_search(states: Tensor) -> Tensor:
    """`states` as `nearest` takes them, a copy where they aren't so."""
    return states.detach().float().cpu().contiguous()


def read_neighbours(queries: Tensor, keys: Tensor, values: Tensor, found: Tensor, scale: float) -> Tensor:
    """Softmax over the keys found for each query, `[batch, heads, tokens, head_dim]`; zero where none was.

    Args:
        queries: [batch, heads, tokens, head_dim].
        keys: [batch, kv_heads, keys, head_dim], which get no gradient.
        values: [batch, kv_heads, keys, head_dim], likewise.
        found: [batch, heads, tokens, count] int64, -1 for none.
        scale: what a product is multiplied with.
    """
    batch, heads, tokens, count = found.shape
    kv_heads, width = keys.shape[1], keys.shape[3]
    index = found.clamp_min(0).view(batch, kv_heads, -1)[..., None].expand(-1, -1, -1, width)
    near_k, near_v = (
        part.detach().gather(2, index).view(batch, heads, tokens, count, width) for part in (keys, values)
    )
    wide = torch.promote_types(queries.dtype, torch.float32)
    scores = (near_k @ queries[..., None])[..., 0].to(wide) * scale
    none = found[..., :1] < 0  # the best is there if any is
    weights = scores.masked_fill((found < 0) & ~none, -torch.inf).softmax(dim=-1)
    read = (weights.to(near_v.dtype)[..., None, :] @ near_v)[..., 0, :]
    return read.masked_fill(none, 0.0)
