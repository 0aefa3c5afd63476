"""Many short texts read at once, each alone behind the same prefix: for training, where texts by the thousand
go through the lower layers.

A text of twenty tokens is too few rows to multiply well. What comes out is what `Decoder` makes of each text,
up to the rounding of its sums; what a bank keeps is never made here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mnemos.attention.decoder import Decoder, rms_norm, rotate
from mnemos.attention.kv import SpanKV

_BATCH_TOKENS = 512  # rows of a batch, padding included


@dataclass(frozen=True, slots=True)
class Read:
    """A text at some layers: the input of each, and what the last of them makes of it; in fp32."""

    hidden: Tensor  # [layers, tokens, hidden]
    keys: Tensor  # [kv_heads, tokens, head_dim], after RoPE
    queries: Tensor  # [heads, tokens, head_dim], after RoPE


@torch.inference_mode()
def read_many(
    decoder: Decoder, prefix: SpanKV, texts: Sequence[Sequence[int]], layers: Sequence[int]
) -> Iterator[tuple[int, Read]]:
    """(index, what the layers, from low to high, see) of every text, in an order of lengths."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * len(texts[index]) > _BATCH_TOKENS:
            yield from _read_batch(decoder, prefix, texts, batch, layers)
            batch = []
        batch.append(index)
    if batch:
        yield from _read_batch(decoder, prefix, texts, batch, layers)


def _read_batch(
    decoder: Decoder,
    prefix: SpanKV,
    texts: Sequence[Sequence[int]],
    batch: Sequence[int],
    layers: Sequence[int],
) -> Iterator[tuple[int, Read]]:
    config, dim, eps = decoder.config, decoder.config.head_dim, decoder.config.rms_norm_eps
    heads, kv_heads, rows = config.heads, config.kv_heads, len(batch)
    longest, before = max(len(texts[index]) for index in batch), prefix.tokens
    tokens = torch.zeros(rows, longest, dtype=torch.long)
    for row, index in enumerate(batch):
        tokens[row, : len(texts[index])] = torch.tensor(texts[index])
    rotated = (heads + kv_heads) * dim
    cis = [rotary.span(before, longest)[:, None] for rotary in decoder.rotaries]
    masks = [_mask(before, longest, window) for window in (None, decoder.window)]  # [tokens, slots]
    x = functional.embedding(tokens, decoder.embed)  # [rows, tokens, hidden]
    if decoder.embedding_scale is not None:
        x = x * decoder.embedding_scale
    inputs = []
    for number, weights in enumerate(decoder.layers[: layers[-1] + 1]):
        if number in layers:
            inputs.append(x)
        qkv = weights.qkv(rms_norm(x, weights.attn_norm, eps))
        if weights.qkv_bias is not None:
            qkv = qkv + weights.qkv_bias
        qk = qkv[..., :rotated].view(rows, longest, heads + kv_heads, dim)
        if weights.qk_norm is not None:
            qk = rms_norm(qk.float(), weights.qk_norm, eps)
        qk = rotate(qk, cis[weights.rotary], decoder.dtype)
        q, k = qk[..., :heads, :].transpose(1, 2), qk[..., heads:, :].transpose(1, 2)
        if number == layers[-1]:
            hidden = torch.stack(inputs)  # [layers, rows, tokens, hidden]
            for row, index in enumerate(batch):
                end = len(texts[index])
                yield (
                    index,
                    Read(hidden[:, row, :end].float(), k[row, :, :end].float(), q[row, :, :end].float()),
                )
            return
        v = qkv[..., rotated:].view(rows, longest, kv_heads, dim).transpose(1, 2)
        seen_k = torch.cat([prefix.k[number].expand(rows, -1, -1, -1), k], dim=2)
        seen_v = torch.cat([prefix.v[number].expand(rows, -1, -1, -1), v], dim=2)
        attended = functional.scaled_dot_product_attention(
            q,
            seen_k,
            seen_v,
            attn_mask=masks[weights.is_local],
            scale=decoder.scale,
            enable_gqa=heads != kv_heads,
        )
        added = weights.o(attended.transpose(1, 2).reshape(rows, longest, heads * dim))
        if weights.post_attn_norm is not None:
            added = rms_norm(added, weights.post_attn_norm, eps)
        x = x + added
        gate, up = weights.gate_up(rms_norm(x, weights.mlp_norm, eps)).chunk(2, dim=-1)
        added = weights.down(decoder.activate(gate) * up)
        if weights.post_mlp_norm is not None:
            added = rms_norm(added, weights.post_mlp_norm, eps)
        x = x + added


def _mask(before: int, longest: int, window: int | None) -> Tensor:
    """What each token may look at, `[tokens, before + tokens]`, bool."""
    place = torch.arange(before + longest)
    own = place[before:, None]
    seen = place[None] <= own
    return seen if window is None else seen & (place[None] > own - window)
