"""One token of each row of a batch through the layers, over static buffers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from mnemos.attention.gpu.step_memory import StepMemory
from mnemos.attention.kernels.dispatch import place_rows, working_attention
from mnemos.attention.kernels.working_rows import TOKEN, WorkingRows

if TYPE_CHECKING:
    from mnemos.attention.gpu.decoder import DeviceDecoder

_PROGRAMS = 264  # two for each of 132 multiprocessors
_MOST_SPLITS = 32


@dataclass(slots=True)
class StepBuffers:
    """What a step reads and writes, at places that stay; `memory` where some row reads memories."""

    working: WorkingRows
    cis: Tensor  # [rotaries, rows + reads, head_dim], fp32: cosines and sines in turn
    source: Tensor  # [reads], int32: the row that asks
    memory: StepMemory | None
    logits: Tensor  # [rows, vocab], fp32
    splits: int  # of working memory


def make_buffers(decoder: "DeviceDecoder", rows: int, reads: int, memory: StepMemory | None) -> StepBuffers:
    """Buffers of a bucket, all rows padding."""
    config, device = decoder.config, decoder.device
    kinds = len(decoder.rotaries)
    splits = max(1, min(_MOST_SPLITS, _PROGRAMS // (rows * config.kv_heads)))
    return StepBuffers(
        WorkingRows.empty(rows, config.kv_heads, device),
        torch.zeros(kinds, rows + reads, config.head_dim, device=device),
        torch.zeros(reads, dtype=torch.int32, device=device),
        memory,
        torch.zeros(rows, config.vocab_size, device=device),
        1 << (splits.bit_length() - 1),
    )


def run_step(decoder: "DeviceDecoder", buffers: StepBuffers) -> None:
    """Append each row's keys and values to its cache; logits into the buffers."""
    config = decoder.config
    heads, dim, eps = config.heads, config.head_dim, config.rms_norm_eps
    working, memory = buffers.working, buffers.memory
    rows = working.rows
    x = functional.embedding(working.fields[TOKEN], decoder.embed)  # [rows, hidden]
    if decoder.embedding_scale is not None:
        x = x * decoder.embedding_scale
    for index, layer in enumerate(decoder.layers):
        qkv = functional.linear(_norm(x, layer.attn_norm, eps), layer.qkv.weight, layer.qkv_bias)
        queries = place_rows(
            qkv, buffers.cis[layer.rotary], buffers.source, layer.qk_norm, eps, working, index
        )  # [rows + reads, heads, dim]
        found = None if memory is None else memory.attend(queries[rows:], index, decoder.scale)
        out = working_attention(
            queries[:rows], working, index, decoder.scale,
            is_local=layer.is_local, memory=found, splits=buffers.splits,
        )  # fmt: skip
        added = layer.o(out.view(rows, heads * dim))
        if layer.post_attn_norm is not None:
            added = _norm(added, layer.post_attn_norm, eps)
        x = x + added
        gate, up = layer.gate_up(_norm(x, layer.mlp_norm, eps)).chunk(2, dim=-1)
        added = layer.down(decoder.activate(gate) * up)
        if layer.post_mlp_norm is not None:
            added = _norm(added, layer.post_mlp_norm, eps)
        x = x + added
    buffers.logits.copy_(decoder.lm_head(_norm(x, decoder.norm, eps)))


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of each row: one kernel on a device."""
    return functional.rms_norm(x, (x.shape[-1],), weight, eps)
