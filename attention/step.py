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
    cis = decoder.rotation(cache.next_position)  # [dim/2], complex
    x = decoder.embed[token].unsqueeze(0)  # [1, hidden]
    start, stop = cache.memory_start, cache.memory_end
    scaled, bias = cache.is_weighed, cache.memory_bias
    for layer, keys, values in zip(decoder.layers, cache.layer_k, cache.layer_v, strict=True):
        qkv = functional.linear(_norm(x, layer.step_attn_norm, eps, width), layer.qkv.decode_weight)
        qk = torch.view_as_complex(qkv[0, :rotated].float().view(-1, dim // 2, 2))
        qk = torch.view_as_real(qk * cis).view(heads + kv_heads, dim)  # fp32
        keys[:, slot] = qk[heads:]
        values[:, slot] = qkv[0, rotated:].view(kv_heads, dim)
        k, v = keys[:, :end], values[:, :end]  # [kv_heads, slots, dim]
        q = qk[:heads].view(kv_heads, group, dim)
        if q.dtype != k.dtype:
            q = q.to(k.dtype)
        if stop > start and scaled:
            scores = torch.bmm(q, k.transpose(1, 2)).float().mul_(decoder.scale)  # [kv_heads, group, slots]
            memory = scores[:, :, start:stop]
            memory.div_(cache.temperature)
            if bias is not None:
                memory.add_(bias)
            memory.add_(memory.logsumexp(dim=-1, keepdim=True).mul_(cache.mass_scale - 1.0))
            out = torch.bmm(scores.softmax(dim=-1).to(v.dtype), v)  # [kv_heads, group, dim]
        else:
            # The heads of a group stand as rows of one head: no key is read twice.
            out = functional.scaled_dot_product_attention(q[None], k[None], v[None], scale=decoder.scale)
        attended = out.reshape(1, heads * dim).to(layer.o.decode_weight.dtype)
        x = x + functional.linear(attended, layer.o.decode_weight)
        gate_up = functional.linear(_norm(x, layer.step_mlp_norm, eps, width), layer.gate_up.decode_weight)
        gated = functional.silu(gate_up[:, :inner]).mul_(gate_up[:, inner:])
        x = x + functional.linear(gated, layer.down.decode_weight)
    cache.advance(1)
    return x


def _norm(x: Tensor, weight: Tensor, eps: float, width: int) -> Tensor:
    """RMSNorm of one row, in the dtype of `weight`."""
    wide = x.float()
    inverse = torch.linalg.vecdot(wide, wide).div_(width).add_(eps).rsqrt_()
    normed: Tensor = (wide * inverse).to(weight.dtype) * weight
    return normed
