"""A lean decoder for every family: preallocated KV, fused projections, memories read beside the working
memory.

Families differ by what `ModelConfig` says: biases, norms, the activation, a window in some layers. In a layer
with a window a token sees that many positions of prefix and working memory; memories it always sees in full,
for they are recalled context and not something it scrolled past.

Rows of the query and key projections are reordered once at load so that the two halves of a rotary pair are
neighbours: RoPE is then one complex product. Stored keys are in that order; products of queries and keys do
not change.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from mnemos.attention.config import ModelConfig
from mnemos.attention.kv import KVCache
from mnemos.attention.linear import Projection
from mnemos.attention.pooled_cache import PooledCache
from mnemos.attention.rope import KeyRotation, rotaries
from mnemos.attention.step import decode_step
from mnemos.attention.step_compiled import MAX_ROWS, CompiledStep, PackedFormat
from mnemos.attention.step_int8 import decode_step_int8
from mnemos.attention.step_weights import StepFormat, step_dtype
from mnemos.attention.weights import LayerWeights, Weights

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
}
_QUERY_BLOCK = 256  # rows of scores at once: bounds the score matrix at block x slots


@dataclass(slots=True)
class Collect:
    """What a pass should keep besides its KV: for routing, calibration and provenance."""

    query_layers: tuple[int, ...] = ()
    hidden_layers: tuple[int, ...] = ()
    memory_mass: bool = False
    few_bits: bool = False  # a probe may multiply the packed weights of steps
    threads: int | None = None  # of such a probe; all of PyTorch's without it
    queries: dict[int, Tensor] = field(default_factory=dict)  # layer -> [heads, tokens, head_dim], after RoPE
    hidden: dict[int, Tensor] = field(default_factory=dict)  # layer -> [tokens, hidden], input of that layer
    mass: Tensor | None = None  # [memory slots], attention summed over layers, heads and tokens

    @property
    def last_layer(self) -> int:
        return max((*self.query_layers, *self.hidden_layers), default=-1)


class Layer:
    """One layer's weights as they are multiplied; what a family doesn't have is None."""

    __slots__ = (
        "attn_norm",
        "down",
        "gate_up",
        "int8_qkv_bias",
        "is_local",
        "mlp_norm",
        "o",
        "post_attn_norm",
        "post_mlp_norm",
        "qk_norm",
        "qkv",
        "qkv_bias",
        "rotary",
        "router_k",
        "router_q",
        "step_attn_norm",
        "step_mlp_norm",
        "step_norms",
        "step_post_attn_norm",
        "step_post_mlp_norm",
        "step_post_norms",
        "step_qkv_bias",
    )  # fmt: skip

    def __init__(
        self,
        weights: LayerWeights,
        config: ModelConfig,
        dtype: torch.dtype,
        decode_dtype: torch.dtype,
        step_format: StepFormat,
        *,
        is_local: bool,
        rotary: int,
    ) -> None:
        self.is_local = is_local  # sees only a window
        self.rotary = rotary  # which of the decoder's rotaries it uses
        qkv = torch.cat(
            [
                _pair_neighbours(weights.q, config.heads),
                _pair_neighbours(weights.k, config.kv_heads),
                weights.v,
            ]
        )
        self.qkv = Projection(qkv, dtype, decode_dtype, step_format)
        self.o = Projection(weights.o, dtype, decode_dtype, step_format)
        self.gate_up = Projection(torch.cat([weights.gate, weights.up]), dtype, decode_dtype, step_format)
        self.down = Projection(weights.down, dtype, decode_dtype, step_format)
        decode_dtype = step_dtype(step_format, decode_dtype)
        self.attn_norm = weights.attn_norm.to(dtype)
        self.mlp_norm = weights.mlp_norm.to(dtype)
        self.step_attn_norm = weights.attn_norm.to(decode_dtype)
        self.step_mlp_norm = weights.mlp_norm.to(decode_dtype)
        bias = _qkv_bias(weights, config)
        self.qkv_bias = None if bias is None else bias.to(dtype)
        self.step_qkv_bias = None if bias is None else bias.to(decode_dtype)
        self.qk_norm = _qk_norm(weights, config)  # fp32
        self.router_q = None if weights.router_q is None else weights.router_q.to(dtype)
        self.router_k = None if weights.router_k is None else weights.router_k.to(dtype)
        post_attn, post_mlp = weights.post_attn_norm, weights.post_mlp_norm
        self.post_attn_norm = None if post_attn is None else post_attn.to(dtype)
        self.post_mlp_norm = None if post_mlp is None else post_mlp.to(dtype)
        self.step_post_attn_norm = None if post_attn is None else post_attn.to(dtype)
        self.step_post_mlp_norm = None if post_mlp is None else post_mlp.to(dtype)
        if step_format == "int8":  # as numpy reads them: before and after attention and MLP, in fp32
            self.step_norms = [norm.float().numpy() for norm in (self.step_attn_norm, self.step_mlp_norm)]
            self.step_post_norms = [
                None if norm is None else norm.float().numpy() for norm in (post_attn, post_mlp)
            ]
            self.int8_qkv_bias = None if bias is None else bias.float().numpy()


def _pair_neighbours(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of each head from halves (x0.. x_{d/2}..) to pairs (x0, x_{d/2}, x1, ...)."""
    out, inner = weight.shape
    return weight.view(heads, 2, out // heads // 2, inner).transpose(1, 2).reshape(out, inner)


def _qkv_bias(weights: LayerWeights, config: ModelConfig) -> Tensor | None:
    """Bias of the fused projection in its order of rows, `[(heads + 2 kv_heads) * head_dim]`."""
    if weights.q_bias is None or weights.k_bias is None or weights.v_bias is None:
        return None
    q = _pair_neighbours(weights.q_bias[:, None], config.heads)
    k = _pair_neighbours(weights.k_bias[:, None], config.kv_heads)
    return torch.cat([q[:, 0], k[:, 0], weights.v_bias])


def _qk_norm(weights: LayerWeights, config: ModelConfig) -> Tensor | None:
    """Norm weights of every query and key head in their order of channels, `[heads + kv_heads, head_dim]`."""
    if weights.q_norm is None or weights.k_norm is None:
        return None
    q, k = (_pair_neighbours(norm[:, None], 1)[:, 0] for norm in (weights.q_norm, weights.k_norm))
    return torch.cat([q.expand(config.heads, -1), k.expand(config.kv_heads, -1)]).float()


class Decoder:
    """The model's layers over a `KVCache`.

    `dtype` is the compute dtype of prefill; `decode_dtype` that of the weights when one token at a time is
    decoded, unless `step_format` says that they are fewer bits. With a library of compiled kernels a step is
    compiled code over `packed` weights, and takes a few tokens at once; `step_format` is then of no account.
    """

    reads_pages = False  # whether memories are read quantised, where a pool of pages holds them

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        *,
        dtype: torch.dtype = torch.float32,
        decode_dtype: torch.dtype | None = None,
        step_format: StepFormat = "plain",
        library: ctypes.CDLL | None = None,
        packed: PackedFormat = "auto",
    ) -> None:
        decode_dtype = decode_dtype or dtype
        if library is not None:
            decode_dtype, step_format = dtype, "plain"
        self.config = config
        self.dtype = dtype
        self.device = torch.device("cpu")  # where the weights are
        self.embed = weights.embed.to(dtype)
        self.norm = weights.norm.to(dtype)
        tied = weights.lm_head is weights.embed
        head = self.embed if tied else weights.lm_head
        # Four bits of the head cost ten times the loss of four bits everywhere else.
        self.lm_head = Projection(head, dtype, decode_dtype, "int8" if step_format == "int4" else step_format)
        self.rotaries, rotary_of_layer = rotaries(config)
        self._rotation = KeyRotation(self.rotaries, rotary_of_layer)
        local = frozenset(config.sliding_layers)
        self.layers = [
            Layer(
                layer,
                config,
                dtype,
                decode_dtype,
                step_format,
                is_local=i in local,
                rotary=rotary_of_layer[i],
            )
            for i, layer in enumerate(weights.layers)
        ]
        in_int8 = step_format == "int8" and dtype == torch.float32
        self._step = decode_step_int8 if in_int8 else decode_step
        self.scale = config.score_scale
        # Rounded to the compute dtype, as a family with such a scale was trained.
        scale = float(torch.tensor(config.embedding_scale, dtype=dtype))
        self.embedding_scale = None if config.embedding_scale == 1.0 else scale
        self.window = config.window if config.sliding_layers else None
        self.activate = ACTIVATIONS[config.activation]
        self.compiled = None if library is None else CompiledStep(self, library, packed)

    def new_cache(self, capacity: int) -> KVCache:
        return KVCache(self.config, capacity, self.dtype, self._rotation)

    @torch.inference_mode()
    def forward(self, tokens: Sequence[int], cache: KVCache, *, collect: Collect | None = None) -> Tensor:
        """Run `tokens` behind what the cache holds and append their KV; logits of the last token, `[vocab]`
        in fp32.

        Raises `ContextOverflowError` when they don't fit.
        """
        if len(tokens) == 1 and collect is None and not isinstance(cache, PooledCache):
            if self.compiled is not None:
                return self.compiled.forward(self, tokens, cache)[0]
            normed = _rms_norm(self._step(self, tokens[0], cache), self.norm, self.config.rms_norm_eps)
            return self.lm_head.step(normed.to(self.lm_head.step_dtype))[0].float()
        x = self._run(tokens, cache, collect, len(self.layers))
        return self._logits(x[-1:])[0]

    @torch.inference_mode()
    def forward_all(self, tokens: Sequence[int], cache: KVCache) -> Tensor:
        """As `forward`, with the logits of every token: `[tokens, vocab]` in fp32."""
        return self._logits(self._run(tokens, cache, None, len(self.layers)))

    @property
    def draft_rows(self) -> int:
        """The most tokens that `step_rows` takes; 1 where several at once aren't the same as one by one."""
        return 1 if self.compiled is None else MAX_ROWS

    @torch.inference_mode()
    def step_rows(self, tokens: Sequence[int], cache: KVCache) -> Tensor:
        """Append up to `draft_rows` tokens; logits of each, `[tokens, vocab]` in fp32, to the last bit those
        of as many single steps.
        """
        if len(tokens) == 1 or self.compiled is None or isinstance(cache, PooledCache):
            return torch.stack([self.forward([token], cache) for token in tokens])
        return self.compiled.forward(self, tokens, cache, len(tokens))

    @torch.inference_mode()
    def prefill(self, tokens: Sequence[int], cache: KVCache, *, collect: Collect | None = None) -> None:
        """Append the KV of `tokens` without computing logits."""
        self._run(tokens, cache, collect, len(self.layers))

    @torch.inference_mode()
    def probe(self, tokens: Sequence[int], cache: KVCache, collect: Collect) -> None:
        """Fill `collect` and leave the cache as it was; layers above the last one asked for are not run."""
        length, position = cache.length, cache.next_position
        self._look_at(tokens, cache, collect)
        cache.truncate(length, position)

    def _look_at(self, tokens: Sequence[int], cache: KVCache, collect: Collect) -> None:
        """Fill `collect` and append what its layers need to the cache.

        A question is few tokens: compiled code multiplies its packed weights in a third of the time of whole
        matrices, with activations of eight bits, as a step does.
        """
        if self.compiled is None or not collect.few_bits or isinstance(cache, PooledCache):
            self._run(tokens, cache, collect, collect.last_layer + 1)
        else:
            self.compiled.look(self, tokens, cache, collect)

    def _run(self, tokens: Sequence[int], cache: KVCache, collect: Collect | None, layers: int) -> Tensor:
        count = len(tokens)
        if count == 0:
            raise ValueError("forward needs at least one token")
        slots = cache.reserve(count)
        config, dim = self.config, self.config.head_dim
        heads, kv_heads = config.heads, config.kv_heads
        rotated, eps = (heads + kv_heads) * dim, config.rms_norm_eps
        first = cache.next_position
        cis = [rotary.span(first, count)[:, None] for rotary in self.rotaries]  # of [tokens, 1, dim/2]
        # [tokens, slots]
        mask = _causal_mask(count, slots.start, self.dtype, self.device) if count > 1 else None
        local_mask = (
            mask if self.window is None else _window_mask(mask, cache, count, self.window, self.dtype)
        )
        x = functional.embedding(torch.tensor(tokens, device=self.device), self.embed)  # [tokens, hidden]
        if self.embedding_scale is not None:
            x = x * self.embedding_scale
        pooled = cache if isinstance(cache, PooledCache) else None
        for index, layer in enumerate(self.layers[:layers]):
            if collect is not None and index in collect.hidden_layers:
                collect.hidden[index] = x.float()
                is_done = index == layers - 1 and index not in collect.query_layers
                if is_done and layers < len(self.layers):
                    break
            normed = _rms_norm(x, layer.attn_norm, eps)
            qkv = layer.qkv(normed)  # [tokens, (h + 2 kv) dim]
            if layer.qkv_bias is not None:
                qkv = qkv.add_(layer.qkv_bias)
            qk = qkv[:, :rotated].view(count, heads + kv_heads, dim)
            if layer.qk_norm is not None:
                qk = _rms_norm(qk.float(), layer.qk_norm, eps)
            qk = _rotate(qk, cis[layer.rotary], self.dtype)
            q = qk[:, :heads].transpose(0, 1)  # [heads, tokens, dim]
            values = qkv[:, rotated:].view(count, kv_heads, dim)
            cache.write(index, slots, qk[:, heads:].transpose(0, 1), values.transpose(0, 1))
            if collect is not None and index in collect.query_layers:
                collect.queries[index] = q.float()
                if index == layers - 1 and layers < len(self.layers):
                    break
            if pooled is not None and pooled.routes(index):
                pooled.route(index, q if layer.router_q is None else self._router_queries(layer, normed))
            seen = local_mask if layer.is_local else mask
            added = layer.o(self._attend(q, cache, index, slots.stop, seen, collect))
            if layer.post_attn_norm is not None:
                added = _rms_norm(added, layer.post_attn_norm, eps)
            x = x + added
            gate_up = layer.gate_up(_rms_norm(x, layer.mlp_norm, eps))
            gate, up = gate_up.chunk(2, dim=-1)
            added = layer.down(self.activate(gate) * up)
            if layer.post_mlp_norm is not None:
                added = _rms_norm(added, layer.post_mlp_norm, eps)
            x = x + added
        cache.advance(count)
        return x

    def _router_queries(self, layer: Layer, normed: Tensor) -> Tensor:
        """Routing queries of `normed [tokens, hidden]`, without RoPE or norm, `[heads, tokens, head_dim]`."""
        assert layer.router_q is not None, "a layer with a router of its own"
        flat = functional.linear(normed, layer.router_q)
        return flat.view(len(normed), self.config.heads, -1).transpose(0, 1)

    def router_keys(self, layer: int, hidden: Tensor) -> Tensor:
        """Routing keys of a layer with a router of its own, without RoPE: `[kv_heads, tokens, head_dim]`.

        `hidden [tokens, hidden]` is the input of that layer.
        """
        weights = self.layers[layer]
        assert weights.router_k is not None, "a layer with a router of its own"
        normed = _rms_norm(hidden.to(self.dtype), weights.attn_norm, self.config.rms_norm_eps)
        flat = functional.linear(normed, weights.router_k)
        return flat.view(len(hidden), self.config.kv_heads, -1).transpose(0, 1)

    def _attend(
        self, q: Tensor, cache: KVCache, layer: int, end: int, mask: Tensor | None, collect: Collect | None
    ) -> Tensor:
        """`q [heads, tokens, dim]` over slots `[0, end)`; `[tokens, heads * dim]`."""
        heads, count, dim = q.shape
        first = cache.first_slot(layer) if isinstance(cache, PooledCache) else 0
        k, v = cache.seen(layer, first, end)  # [kv_heads, slots, dim]
        if first and mask is not None:
            mask = mask[:, first:]
        kv_heads = k.shape[0]
        if not cache.memory_tokens and mask is not None:
            out = functional.scaled_dot_product_attention(
                q[None], k[None], v[None], attn_mask=mask, scale=self.scale, enable_gqa=heads != kv_heads
            )[0]  # [heads, tokens, dim]
            return out.transpose(0, 1).reshape(count, heads * dim)
        group = heads // kv_heads
        grouped = (
            q.view(kv_heads, group, count, dim)
            if q.is_contiguous()
            else q.reshape(kv_heads, group, count, dim)
        )
        keys = k.transpose(1, 2)  # [kv_heads, dim, slots]
        blocks = []
        for start in range(0, count, _QUERY_BLOCK):
            rows = grouped[:, :, start : start + _QUERY_BLOCK]  # [kv_heads, group, rows, dim]
            n = rows.shape[2]
            scores = torch.bmm(
                rows.reshape(kv_heads, group * n, dim), keys
            )  # [kv_heads, group * rows, slots]
            weights = self._weigh(
                scores.float(), cache, None if mask is None else mask[start : start + n], group
            )
            if collect is not None and collect.memory_mass and cache.memory_tokens:
                seen = weights[:, :, cache.memory_start : cache.memory_end].sum(dim=(0, 1))
                collect.mass = seen if collect.mass is None else collect.mass + seen
            blocks.append(torch.bmm(weights.to(v.dtype), v).view(kv_heads * group, n, dim))
        out = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)  # [heads, tokens, dim]
        return out.transpose(0, 1).reshape(count, heads * dim)

    def _weigh(self, scores: Tensor, cache: KVCache, mask: Tensor | None, group: int) -> Tensor:
        """Softmax over all slots, the memory part by adaptive parallel encoding (arXiv 2502.05431).

        With s the memory scores, T the temperature and S the mass scale, that part is softmax(s / T) with
        log-sum-exp S * lse(s / T). Adding (S - 1) * lse(s / T) to s / T gives both in one softmax.
        """
        scores.mul_(self.scale)
        if cache.memory_tokens and cache.is_weighed:
            memory = scores[:, :, cache.memory_start : cache.memory_end]
            memory.div_(cache.temperature)
            if cache.mass_scale != 1.0:
                memory.add_(torch.logsumexp(memory, dim=-1, keepdim=True).mul_(cache.mass_scale - 1.0))
        if mask is not None:
            kv_heads, rows, slots = scores.shape
            scores.view(kv_heads, group, rows // group, slots).add_(mask)
        return torch.softmax(scores, dim=-1)

    def _logits(self, x: Tensor) -> Tensor:
        normed = _rms_norm(x, self.norm, self.config.rms_norm_eps)
        return self.lm_head(normed).float()


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm (arXiv 1910.07467) over the last dimension, in fp32.

    torch's own rms_norm took 2.9 ms for 512 rows of 576 on a CPU where this takes 0.25 ms.
    """
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(eps))).to(x.dtype) * weight


def _rotate(x: Tensor, cis: Tensor, dtype: torch.dtype) -> Tensor:
    """RoPE on neighbouring pairs: `x [tokens, heads, dim]`, `cis [tokens, 1, dim/2]`, to `dtype`."""
    pairs = torch.view_as_complex(torch.unflatten(x.float(), -1, (-1, 2)))
    return torch.view_as_real(pairs * cis).flatten(-2).to(dtype)


def _causal_mask(count: int, start: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`[count, start + count]`: zero where a token may look, -inf at later tokens."""
    mask = torch.zeros(count, start + count, dtype=dtype, device=device)
    mask[:, start:] = torch.full((count, count), float("-inf"), dtype=dtype, device=device).triu_(1)
    return mask


def _window_mask(
    mask: Tensor | None, cache: KVCache, count: int, window: int, dtype: torch.dtype
) -> Tensor | None:
    """The causal `mask` (None for one token) with what lies further back than the window at -inf as well.

    `[count, slots]`, or `mask` itself while nothing lies so far back.
    """
    if cache.next_position + count <= window:
        return mask
    device = cache.k.device
    rows = torch.arange(count, device=device)[:, None]
    slots = torch.arange(cache.length + count, device=device)
    first_position = rows + (cache.next_position + 1 - window)  # what the window begins with, [count, 1]
    first_slot = rows + (cache.length + 1 - window)  # the same as a slot of working memory
    too_old = (slots < cache.memory_start) & (slots < first_position)  # [count, slots]
    too_old |= (slots >= cache.memory_end) & (slots < first_slot)
    base = torch.zeros(too_old.shape, dtype=dtype, device=device) if mask is None else mask
    return base.masked_fill(too_old, float("-inf"))
