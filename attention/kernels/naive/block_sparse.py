"""Attention to a sequence's own earlier tokens and to the blocks that it reads, in plain torch."""

import torch
from torch import Tensor

from mnemos.attention.kernels.read_blocks import ReadBlocks


def block_sparse(
    q: Tensor, k: Tensor, v: Tensor, there: Tensor, memory: ReadBlocks | None, score_scale: float
) -> Tensor:
    """As `mnemos.attention.kernels.dispatch.block_sparse`; float64 too."""
    tokens, keys = q.shape[2], k.shape[2]
    group = q.shape[1] // k.shape[1]
    order = torch.arange(keys, device=q.device)
    causal = order <= order[keys - tokens :, None]
    seen = causal & there[:, None]  # [sequences, tokens, keys]
    if memory is not None:
        own = memory.used[memory.blocks]  # [sequences, reads]
        inside = torch.arange(memory.k.shape[1], device=q.device) < own[..., None]
        shown = memory.visible[..., None] & inside[:, None]  # [sequences, tokens, reads, keys of a block]
        seen = torch.cat((seen, shown.flatten(2)), dim=2)
        k = torch.cat((k, memory.k[memory.blocks].flatten(1, 2).transpose(1, 2)), dim=2)
        v = torch.cat((v, memory.v[memory.blocks].flatten(1, 2).transpose(1, 2)), dim=2)
    wide = torch.promote_types(q.dtype, torch.float32)
    k, v = (part.repeat_interleave(group, dim=1).to(wide) for part in (k, v))
    scores = (q.to(wide) @ k.transpose(2, 3)) * score_scale
    asks = there[:, keys - tokens :, None]  # [sequences, tokens, 1]
    # A row without keys would be NaN: one that is not there sees all, and is zeroed behind.
    weights = scores.masked_fill((asks & ~seen)[:, None], -torch.inf).softmax(dim=-1)
    return ((weights @ v) * asks[:, None]).to(q.dtype)
