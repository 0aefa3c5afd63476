"""One token of each of several conversations through the layers: the weights are read once for all of them.

A step of one conversation is bound by the bytes of the weights, so that a second row costs little. Each row
attends to its own cache: its length, its memories and how they are weighed. A row gets what `decode_step`
would give it alone, up to the order of sums.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from mnemos.attention.kv import KVCache
from mnemos.attention.linear import Projection
from mnemos.attention.step import attend, out_of_window
from mnemos.attention.step_weights import Int8Weight, PlainWeight

if TYPE_CHECKING:
    from mnemos.attention.decoder import Decoder

_WIDENED_BYTES = 1 << 20  # of fp32 weights at once: they stay in the CPU's cache until they are multiplied
_WIDENED_ROWS = 3  # fewer rows are faster as they are


def decode_batch(decoder: "Decoder", tokens: Sequence[int], caches: Sequence[KVCache]) -> Tensor:
    """Append the KV of one token to each cache; the residuals before the last norm, `[rows, hidden]`.

    Raises `ContextOverflowError` when a token does not fit its cache; no cache has changed then. ValueError
    when two rows share a cache.
    """
    if len({id(cache) for cache in caches}) != len(caches) or len(tokens) != len(caches):
        raise ValueError("each row of a batch has one token and a cache of its own")
    config = decoder.config
    heads, kv_heads, dim = config.heads, config.kv_heads, config.head_dim
    group, rotated, inner = heads // kv_heads, (heads + kv_heads) * dim, config.intermediate_size
    eps, count = config.rms_norm_eps, len(tokens)
    rows = [_Row(decoder, cache) for cache in caches]
    positions = [cache.next_position for cache in caches]
    cis = [  # of [rows, 1, dim/2], complex
        torch.stack([rotary.at(position) for position in positions])[:, None] for rotary in decoder.rotaries
    ]
    x = functional.embedding(torch.tensor(tokens), decoder.embed)  # [rows, hidden]
    if decoder.embedding_scale is not None:
        x = x * decoder.embedding_scale
    for index, layer in enumerate(decoder.layers):
        qkv = _product(layer.qkv, _norm(x, layer.step_attn_norm, eps))  # [rows, (heads + 2 kv_heads) dim]
        if layer.step_qkv_bias is not None:
            qkv = qkv + layer.step_qkv_bias
        qk = qkv[:, :rotated].float().view(count, -1, dim)  # [rows, heads + kv_heads, dim]
        if layer.qk_norm is not None:
            inverse = torch.linalg.vecdot(qk, qk).div_(dim).add_(eps).rsqrt_()
            qk = qk * inverse[..., None] * layer.qk_norm
        pairs = torch.view_as_complex(qk.reshape(count, -1, dim // 2, 2))
        qk = torch.view_as_real(pairs * cis[layer.rotary]).view(count, -1, dim)  # fp32
        new_k, new_v = qk[:, heads:], qkv[:, rotated:].view(count, kv_heads, dim)
        torch._foreach_copy_([row.new_k[index] for row in rows], list(new_k.unbind()))
        torch._foreach_copy_([row.new_v[index] for row in rows], list(new_v.unbind()))
        q = qk[:, :heads].reshape(count, kv_heads, group, dim).to(decoder.dtype)
        seen = [row.attend(query, index, is_local=layer.is_local) for row, query in zip(rows, q, strict=True)]
        out = torch.stack(seen).view(count, heads * dim)
        added = _product(layer.o, out.to(layer.o.step_dtype))
        if layer.step_post_attn_norm is not None:
            added = _norm(added, layer.step_post_attn_norm, eps)
        x = x + added
        gate_up = _product(layer.gate_up, _norm(x, layer.step_mlp_norm, eps))
        added = _product(layer.down, decoder.activate(gate_up[:, :inner]) * gate_up[:, inner:])
        if layer.step_post_mlp_norm is not None:
            added = _norm(added, layer.step_post_mlp_norm, eps)
        x = x + added
    for cache in caches:
        cache.advance(1)
    return x


def batch_logits(decoder: "Decoder", x: Tensor) -> Tensor:
    """Logits `[rows, vocab]` in fp32 of residuals `x [rows, hidden]` before the last norm."""
    normed = _norm(x, decoder.norm, decoder.config.rms_norm_eps)
    return _product(decoder.lm_head, normed.to(decoder.lm_head.step_dtype)).float()


class _Row:
    """One conversation's cache as this step reads and writes it, layer by layer."""

    def __init__(self, decoder: "Decoder", cache: KVCache) -> None:
        slot = cache.reserve(1).start
        self.new_k, self.new_v = (t[:, :, slot].unbind() for t in (cache.k, cache.v))  # [kv_heads, dim]
        self._decoder, self._cache = decoder, cache
        self._weighed = cache.memory_end > cache.memory_start and cache.is_weighed
        self._keys, self._values = self._views(0, slot + 1)
        self._local_keys, self._local_values, self._mask = self._keys, self._values, None
        if decoder.window is not None and cache.next_position >= decoder.window:
            first, self._mask = out_of_window(cache, decoder.window)
            self._local_keys, self._local_values = self._views(first, slot + 1)

    def _views(self, start: int, end: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Of each layer: `[kv_heads, slots, dim]`."""
        k, v = self._cache.k[:, :, start:end], self._cache.v[:, :, start:end]
        return k.unbind(), v.unbind()

    def attend(self, q: Tensor, layer: int, *, is_local: bool) -> Tensor:
        """`q [kv_heads, group, dim]` over what this row sees in a layer; of the same shape."""
        k = (self._local_keys if is_local else self._keys)[layer]
        v = (self._local_values if is_local else self._values)[layer]
        mask = self._mask if is_local else None
        if self._weighed or mask is not None:
            return attend(self._decoder, self._cache, q, k, v, mask).view(q.shape)
        scores = torch.bmm(q, k.transpose(1, 2)).float().mul_(self._decoder.scale)  # [kv_heads, group, slots]
        return torch.bmm(scores.softmax(dim=-1).to(v.dtype), v)


def _product(projection: Projection, x: Tensor) -> Tensor:
    """`x [rows, in]` to `[rows, out]` by the weights that a step of one row multiplies."""
    step = projection.step
    if isinstance(step, Int8Weight):
        return step.products(x)
    if isinstance(step, PlainWeight) and len(x) > _WIDENED_ROWS and not _is_multiplied_fast(x.dtype):
        return _widened(step.weight, x)
    return step(x)


def _is_multiplied_fast(dtype: torch.dtype) -> bool:
    from mnemos.attention.linear import fast_dtype

    return dtype in (torch.float32, fast_dtype())


def _widened(weight: Tensor, x: Tensor) -> Tensor:
    """The product in fp32, some outputs at a time: this CPU multiplies narrow floats one row at a time."""
    wide = x.float()
    out = torch.empty(len(x), len(weight), dtype=x.dtype)
    share = max(1, _WIDENED_BYTES // (4 * weight.shape[1]))
    for start in range(0, len(weight), share):
        out[:, start : start + share] = wide @ weight[start : start + share].float().T
    return out


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of each row, in the dtype of `weight`."""
    wide = x.float()
    inverse = torch.linalg.vecdot(wide, wide).div_(wide.shape[1]).add_(eps).rsqrt_()
    normed: Tensor = (wide * inverse[:, None]).to(weight.dtype) * weight
    return normed
