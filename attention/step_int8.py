"""One token through the layers with int8 weights: the twin of `decode_step`, its small operations in numpy.

A tensor operation on one row costs PyTorch several microseconds of book-keeping, numpy under one; a step has
a thousand of them. Products of weights, and attention to weighed memories, stay with PyTorch.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnemos.attention.kv import KVCache
from mnemos.attention.step import attend, out_of_window

if TYPE_CHECKING:
    from mnemos.attention.decoder import Decoder

Floats = NDArray[np.float32]


def decode_step_int8(decoder: "Decoder", token: int, cache: KVCache) -> Tensor:
    """Append the KV of one token; its residual before the last norm, `[1, hidden]`. All of it in fp32."""
    slot = cache.reserve(1).start
    end = slot + 1
    config = decoder.config
    heads, kv_heads, dim = config.heads, config.kv_heads, config.head_dim
    rotated, inner, eps = (heads + kv_heads) * dim, config.intermediate_size, config.rms_norm_eps
    cis = [rotary.at(cache.next_position).numpy() for rotary in decoder.rotaries]  # of [dim/2], complex
    x: Floats = decoder.embed[token].float().numpy()  # [hidden]
    x = x.copy() if decoder.embedding_scale is None else x * np.float32(decoder.embedding_scale)
    first, hidden = 0, None  # what a layer with a window leaves out: slots before, and a mask [1, slots]
    if decoder.window is not None and cache.next_position >= decoder.window:
        first, hidden = out_of_window(cache, decoder.window)
    weighed = cache.memory_end > cache.memory_start and cache.is_weighed
    all_keys, all_values = cache.k.numpy(), cache.v.numpy()
    with np.errstate(all="ignore"):  # what isn't finite shows in the logits
        for index, layer in enumerate(decoder.layers):
            pre, post = layer.step_norms, layer.step_post_norms
            qkv = layer.qkv.int8.product(x * pre[0], _inverse(x, eps))  # [(heads + 2 kv_heads) dim]
            if layer.int8_qkv_bias is not None:
                qkv += layer.int8_qkv_bias
            qk = qkv[:rotated].reshape(-1, dim)  # [heads + kv_heads, dim]
            if layer.qk_norm is not None:
                squares = np.einsum("hd,hd->h", qk, qk)
                qk = qk * (1.0 / np.sqrt(squares / dim + eps))[:, None] * layer.qk_norm.numpy()
            qk = (np.ascontiguousarray(qk).view(np.complex64) * cis[layer.rotary]).view(np.float32)
            keys, values = all_keys[index], all_values[index]  # [kv_heads, capacity, dim]
            keys[:, slot] = qk[heads:]
            values[:, slot] = qkv[rotated:].reshape(kv_heads, dim)
            begin, mask = (first, hidden) if layer.is_local else (0, None)
            q = qk[:heads].reshape(kv_heads, heads // kv_heads, dim)
            if weighed or mask is not None:
                k, v = cache.layer_k[index][:, begin:end], cache.layer_v[index][:, begin:end]
                out = attend(decoder, cache, torch.from_numpy(q), k, v, mask).numpy()
            else:
                out = _attend(q * np.float32(decoder.scale), keys[:, begin:end], values[:, begin:end])
            added = layer.o.int8.product(out.reshape(-1))
            if post[0] is not None:
                added = added * post[0] * _inverse(added, eps)
            x += added
            gate_up = layer.gate_up.int8.product(x * pre[1], _inverse(x, eps))
            gated = decoder.activate(torch.from_numpy(gate_up[:inner])).numpy()
            gated *= gate_up[inner:]
            added = layer.down.int8.product(gated)
            if post[1] is not None:
                added = added * post[1] * _inverse(added, eps)
            x += added
    cache.advance(1)
    return torch.from_numpy(x)[None]


def _inverse(x: Floats, eps: float) -> float:
    """What RMSNorm multiplies `x` by, weights apart."""
    return 1.0 / math.sqrt(float(np.dot(x, x)) / len(x) + eps)


def _attend(q: Floats, k: Floats, v: Floats) -> NDArray[Any]:
    """Plain attention: `q [kv_heads, group, dim]`, scaled, over `k` and `v [kv_heads, slots, dim]`."""
    scores = np.matmul(q, k.transpose(0, 2, 1))  # [kv_heads, group, slots]
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    out: NDArray[Any] = np.matmul(scores, v)
    out /= scores.sum(axis=-1, keepdims=True)
    return out
