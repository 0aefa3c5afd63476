"""Decode attention over working memory, joined with the part over paged memories, in plain torch."""

import torch
from torch import Tensor

from mnemos.attention.kernels.naive.lse_merge import lse_merge
from mnemos.attention.kernels.working_rows import (
    FIRST_PREFIX,
    FIRST_WORKING,
    LENGTH,
    PREFIX,
    WorkingRows,
)


def working_attention(
    q: Tensor,
    working: WorkingRows,
    layer: int,
    score_scale: float,
    *,
    is_local: bool,
    memory: tuple[Tensor, Tensor, Tensor] | None,
    splits: int,
) -> Tensor:
    """As `mnemos.attention.kernels.dispatch.working_attention`; `splits` is of no account here."""
    rows = len(q)
    out = torch.empty_like(q)
    for row in range(rows):
        seen, lse = _working(q[row], working, row, layer, score_scale, is_local=is_local)
        if memory is not None:
            seen = lse_merge(memory[0][row], memory[1][row], seen, lse, float(memory[2][row]))
        out[row] = seen.to(q.dtype)
    return out


def _working(
    q: Tensor, working: WorkingRows, row: int, layer: int, score_scale: float, *, is_local: bool
) -> tuple[Tensor, Tensor]:
    """Output `[heads, head_dim]` and log-sum-exp `[heads]` of one row, in fp32."""
    fields, buffers = working.fields[:, row].tolist(), working.buffers[row]
    length = fields[LENGTH]
    if buffers is None or not length:
        return torch.zeros_like(q, dtype=torch.float32), q.new_full(
            (len(q),), -torch.inf, dtype=torch.float32
        )
    group = len(q) // working.kv_heads
    k, v = (part[layer, :, :length].float().repeat_interleave(group, dim=0) for part in buffers)
    scores = torch.einsum("hd,htd->ht", q.float(), k) * score_scale  # [heads, tokens]
    if is_local:
        slot = torch.arange(length, device=q.device)
        hidden = (slot < fields[FIRST_PREFIX]) | (
            (slot >= fields[PREFIX]) & (slot < max(fields[FIRST_WORKING], fields[PREFIX]))
        )
        scores = scores.masked_fill(hidden & (slot < length - 1), -torch.inf)
    return torch.einsum("ht,htd->hd", torch.softmax(scores, dim=-1), v), torch.logsumexp(scores, dim=-1)
