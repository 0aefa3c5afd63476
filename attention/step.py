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
        first, hidden = out_of_window(cache, decoder.window)
    for layer, keys, values in zip(decoder.layers, cache.layer_k, cache.layer_v, strict=True):
        qkv = layer.qkv.step(_norm(x, layer.step_attn_norm, eps, width))
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
        out = attend(decoder, cache, q, k, v, mask)
        added = layer.o.step(out.reshape(1, heads * dim).to(layer.o.step_dtype))
        if layer.step_post_attn_norm is not None:
            added = _norm(added, layer.step_post_attn_norm, eps, width)
        x = x + added
        gate_up = layer.gate_up.step(_norm(x, layer.step_mlp_norm, eps, width))
        gated = decoder.activate(gate_up[:, :inner]).mul_(gate_up[:, inner:])
        added = layer.down.step(gated)
        if layer.step_post_mlp_norm is not None:
            added = _norm(added, layer.step_post_mlp_norm, eps, width)
        x = x + added
    cache.advance(1)
    return x


def attend(
    decoder: "Decoder", cache: KVCache, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
) -> Tensor:
    """`q [kv_heads, group, dim]` over `k` and `v [kv_heads, slots, dim]`, memories weighed as the cache says;
    of as many elements as `q`. A `mask [1, slots]` is added to the scores.
    """
    start, stop = cache.memory_start, cache.memory_end
    if stop > start and cache.is_weighed:
        scores = torch.bmm(q, k.transpose(1, 2)).float().mul_(decoder.scale)  # [kv_heads, group, slots]
        memory = scores[:, :, start:stop]
        memory.div_(cache.temperature)
        memory.add_(memory.logsumexp(dim=-1, keepdim=True).mul_(cache.mass_scale - 1.0))
        if mask is not None:
            scores.add_(mask)
        return torch.bmm(scores.softmax(dim=-1).to(v.dtype), v)  # [kv_heads, group, dim]
    # The heads of a group stand as rows of one head: no key is read twice.
    return functional.scaled_dot_product_attention(
        q[None], k[None], v[None], attn_mask=mask, scale=decoder.scale
    )


def out_of_window(cache: KVCache, window: int) -> tuple[int, Tensor | None]:
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
    row = wide[0]
    inverse = (
        float(torch.dot(row, row)) / width + eps
    ) ** -0.5  # a number costs less than one-element tensors
    normed: Tensor = (wide * inverse).to(weight.dtype) * weight
    return normed


def _head_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of each head of `x [heads, head_dim]` with weights of the same shape, in fp32."""
    inverse = torch.linalg.vecdot(x, x).div_(x.shape[1]).add_(eps).rsqrt_()  # [heads]
    normed: Tensor = x * inverse[:, None] * weight
    return normed
