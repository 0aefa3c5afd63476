"""Decode attention over paged memories, in plain torch."""

import torch
from torch import Tensor

from mnemos.attention.kernels.memory_table import MemoryTable, SplitPlan
from mnemos.attention.quantize import dequantize_keys, dequantize_values, unpack_nibbles, value_group


def split_kv_attention(
    q: Tensor, table: MemoryTable, plan: SplitPlan, layer: int, score_scale: float, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `mnemos.attention.kernels.dispatch.split_kv_attention`."""
    batch, heads, dim = q.shape
    group = heads // table.kv_heads
    out = torch.empty(batch, heads, dim, dtype=torch.float32, device=q.device)
    lse = torch.empty(batch, heads, dtype=torch.float32, device=q.device)
    for index, spans in enumerate(plan.reads):
        pairs = [read_span(table, span, layer) for span in spans]
        keys = torch.cat([k for k, _ in pairs], dim=1).repeat_interleave(group, dim=0)  # [heads, tokens, dim]
        values = torch.cat([v for _, v in pairs], dim=1).repeat_interleave(group, dim=0)
        scores = torch.einsum("hd,htd->ht", q[index].float(), keys) * score_scale  # [heads, tokens]
        if bias is not None:
            sizes = torch.tensor([table.tokens[span] for span in spans], device=q.device)
            scores += bias[list(spans)].repeat_interleave(sizes)
        lse[index] = torch.logsumexp(scores, dim=-1)
        out[index] = torch.einsum("ht,htd->hd", torch.softmax(scores, dim=-1), values)
    return out, lse


def read_span(table: MemoryTable, span: int, layer: int) -> tuple[Tensor, Tensor]:
    """K and V of one span and layer, each `[kv_heads, tokens, head_dim]` in fp32."""
    tokens, groups, *offsets = (int(cell) for cell in table.rows[span])
    layers, heads, dim = table.layers, table.kv_heads, table.head_dim
    parts = [
        table.pool[offset : offset + size]
        for offset, size in zip(offsets, table.part_bytes(span), strict=True)
    ]
    shape = (layers, heads, tokens, dim)
    if table.bits == 16:
        k, v = (parts[i].view(table.raw_dtype).view(shape)[layer].float() for i in (0, 2))
        return k, v
    scales = [part.view(torch.float16) for part in (parts[1], parts[3])]
    k_scales = scales[0].view(2, layers, heads, groups, dim)[:, layer]
    v_scales = scales[1].view(2, layers, heads, tokens, dim // value_group(dim))[:, layer]
    k, v = (torch.empty(shape[1:], device=table.pool.device) for _ in range(2))
    dequantize_keys(_codes(parts[0], shape, table.bits)[layer], k_scales, k)
    dequantize_values(_codes(parts[2], shape, table.bits)[layer], v_scales, v)
    return k, v


def _codes(part: Tensor, shape: tuple[int, ...], bits: int) -> Tensor:
    return part.view(shape) if bits == 8 else unpack_nibbles(part.view(*shape[:-1], shape[-1] // 2))
