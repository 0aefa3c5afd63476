"""One token through the layers, with as few tensor operations as will do.

At one token the weights stream from memory and every small operation shows: this does what `Decoder._run`
does in about half of them. The residual stays in the compute dtype; products are in the dtype of the decode
weights.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from mnemos.attention.kv import KVCache

if TYPE_CHECKING:
    from mnemos.attention.decoder import Decoder


def decode_step(decoder: "Decoder", token: int, cache: KVCache) -> Tensor:
    """Append the KV of one token; its residual before the last norm, `[1, hidden]`."""
    slot = cache.reserve(1).start
    end = slot + 1
    config = decoder.config
    heads, kv_heads, dim = config.heads, config.kv_heads, config.head_dim
    group, rotated, inner = heads // kv_heads, (heads + kv_heads) * dim, config.intermediate_size
    eps, width = config.rms_norm_eps, config.hidden_size
    cis = [rotary.at(cache.next_position) for rotary in decoder.rotaries]  # of [dim/2], complex
    x = decoder.embed[token].unsqueeze(0)  # [1, hidden]
    if decoder.embedding_scale is not None:
        x = x * decoder.embedding_scale
    first, hidden = 0, None  # what a layer with a window leaves out: slots before, and a mask [1, slots]
    if decoder.window is not None and cache.next_position >= decoder.window:
        first, hidden = _out_of_window(cache, decoder.window)
    start, stop = cache.memory_start, cache.memory_end
    scaled = cache.temperature != 1.0 or cache.mass_scale != 1.0
    for layer, keys, values in zip(decoder.layers, cache.layer_k, cache.layer_v, strict=True):
        qkv = functional.linear(_norm(x, layer.step_attn_norm, eps, width), layer.qkv.decode_weight)
        if layer.step_qkv_bias is not None:
            qkv.add_(layer.step_qkv_bias)
        qk = qkv[0, :rotated].float()
        if layer.qk_norm is not None:
            qk = _head_norm(qk.view(-1, dim), layer.qk_norm, eps)
        qk = torch.view_as_complex(qk.view(-1, dim // 2, 2))
        qk = torch.view_as_real(qk * cis[layer.rotary]).view(heads + kv_heads, dim)  # fp32
        keys[:, slot] = qk[heads:]
        values[:, slot] = qkv[0, rotated:].view(kv_heads, dim)
        begin, mask = (first, hidden) if layer.is_local else (0, None)
        k, v = keys[:, begin:end], values[:, begin:end]  # [kv_heads, slots, dim]
        q = qk[:heads].view(kv_heads, group, dim)
        if q.dtype != k.dtype:
            q = q.to(k.dtype)
        if stop > start and scaled:
            scores = torch.bmm(q, k.transpose(1, 2)).float().mul_(decoder.scale)  # [kv_heads, group, slots]
            memory = scores[:, :, start:stop]
            memory.div_(cache.temperature)
            memory.add_(memory.logsumexp(dim=-1, keepdim=True).mul_(cache.mass_scale - 1.0))
            if mask is not None:
                scores.add_(mask)
            out = torch.bmm(scores.softmax(dim=-1).to(v.dtype), v)  # [kv_heads, group, dim]
        else:
            # The heads of a group stand as rows of one head: no key is read twice.
            out = functional.scaled_dot_product_attention(
                q[None], k[None], v[None], attn_mask=mask, scale=decoder.scale
            )
        attended = out.reshape(1, heads * dim).to(layer.o.decode_weight.dtype)
        added = functional.linear(attended, layer.o.decode_weight)
        if layer.step_post_attn_norm is not None:
            added = _norm(added, layer.step_post_attn_norm, eps, width)
        x = x + added
        gate_up = functional.linear(_norm(x, layer.step_mlp_norm, eps, width), layer.gate_up.decode_weight)
        gated = decoder.activate(gate_up[:, :inner]).mul_(gate_up[:, inner:])
        added = functional.linear(gated, layer.down.decode_weight)
        if layer.step_post_mlp_norm is not None:
            added = _norm(added, layer.step_post_mlp_norm, eps, width)
        x = x + added
    cache.advance(1)
    return x


def _out_of_window(cache: KVCache, window: int) -> tuple[int, Tensor | None]:
    """What one more token can't see: all slots before the first number, and those at -inf in the mask.

    Without memories the window is one stretch of slots; with them the mask, `[1, slots]`, leaves out what is
    too old on either side of them.
    """
    slot, first_position = cache.length, cache.next_position + 1 - window
    if not cache.memory_tokens:
        return slot + 1 - window, None
    mask = torch.zeros(1, slot + 1, dtype=cache.k.dtype)
    mask[:, : min(max(first_position, 0), cache.memory_start)] = float("-inf")
    mask[:, cache.memory_end : max(slot + 1 - window, cache.memory_end)] = float("-inf")
    return 0, mask


def _norm(x: Tensor, weight: Tensor, eps: float, width: int) -> Tensor:
    """RMSNorm of one row, in the dtype of `weight`."""
    wide = x.float()
    inverse = torch.linalg.vecdot(wide, wide).div_(width).add_(eps).rsqrt_()
    normed: Tensor = (wide * inverse).to(weight.dtype) * weight
    return normed


def _head_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of each head of `x [heads, head_dim]` with weights of the same shape, in fp32."""
    inverse = torch.linalg.vecdot(x, x).div_(x.shape[1]).add_(eps).rsqrt_()  # [heads]
    normed: Tensor = x * inverse[:, None] * weight
    return normed
