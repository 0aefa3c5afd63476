"""Decode attention over paged memories, in plain torch."""

import torch
from torch import Tensor

from mnemos.attention.kernels.memory_table import MemoryTable, SplitPlan
from mnemos.attention.kernels.page_layout import TILE
from mnemos.attention.quantize import unpack_nibbles


def split_kv_attention(
    q: Tensor, table: MemoryTable, plan: SplitPlan, layer: int, score_scale: float, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `mnemos.attention.kernels.dispatch.split_kv_attention`."""
    heads, dim = q.shape[1:]
    group = heads // table.kv_heads
    out = torch.zeros(plan.batch, heads, dim, dtype=torch.float32, device=q.device)
    lse = torch.full((plan.batch, heads), float("-inf"), dtype=torch.float32, device=q.device)
    for index, (spans, rows) in enumerate(zip(plan.reads, plan.query_rows, strict=True)):
        if not spans:
            continue
        pairs = [read_span(table, span, layer) for span in spans]
        values = torch.cat([v for _, v in pairs], dim=1).repeat_interleave(
            group, dim=0
        )  # [heads, tokens, dim]
        parts = []
        for (k, _), span, row in zip(pairs, spans, rows, strict=True):
            keys = k.repeat_interleave(group, dim=0)  # [heads, tokens of the span, dim]
            scores = torch.einsum("hd,htd->ht", q[row].float(), keys) * score_scale
            parts.append(scores if bias is None else scores + bias[span])
        scores = torch.cat(parts, dim=1)  # [heads, tokens]
        lse[index] = torch.logsumexp(scores, dim=-1)
        out[index] = torch.einsum("ht,htd->hd", torch.softmax(scores, dim=-1), values)
    return out, lse


def read_span(table: MemoryTable, span: int, layer: int) -> tuple[Tensor, Tensor]:
    """K and V of one span and layer, each `[kv_heads, tokens, head_dim]` in fp32."""
    layout, dim, tokens = table.layout, table.head_dim, table.tokens[span]
    first, last = table.starts[span : span + 2]
    pages = table.pool[layer, table.pages[first:last].long()]  # [tiles, page_bytes]
    heads = pages.view(len(pages), table.kv_heads, layout.head_bytes)
    k_codes, k_scales, v_codes, v_scales = heads.split(
        (
            TILE * layout.row_bytes,
            layout.k_scale_bytes,
            TILE * layout.row_bytes,
            TILE * layout.v_scale_bytes,
        ),
        dim=-1,
    )
    if table.bits == 16:
        k, v = (_halves(part, table.raw_dtype, TILE, dim).float() for part in (k_codes, v_codes))
    else:
        k_codes, v_codes = (
            _codes(part, table.bits, dim) for part in (k_codes, v_codes)
        )  # [tiles, heads, 32, dim]
        scale, low = _halves(k_scales, torch.float16, 2, dim).float().unsqueeze(3).unbind(2)  # [.., 1, dim]
        k = torch.addcmul(low, k_codes.float(), scale)
        groups = layout.v_groups
        scale, low = (
            _halves(v_scales, torch.float16, 2, TILE, groups, 1).float().unbind(2)
        )  # [.., 32, groups, 1]
        v = torch.addcmul(low, v_codes.float().unflatten(-1, (groups, -1)), scale).flatten(-2)
    k, v = (part.transpose(0, 1).flatten(1, 2)[:, :tokens] for part in (k, v))
    return k, v


def _halves(part: Tensor, dtype: torch.dtype, *shape: int) -> Tensor:
    return part.contiguous().view(dtype).view(*part.shape[:2], *shape)


def _codes(part: Tensor, bits: int, dim: int) -> Tensor:
    rows = part.reshape(*part.shape[:2], TILE, -1)
    return rows if bits == 8 else unpack_nibbles(rows)
