"""A few tokens through the layers in compiled code, from weights of four or eight bits.

Tokens that are run together and one after the other have the same logits to the last bit, so that drafts can
be verified without changing a reply.
"""

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from mnemos.attention.compiled import Matrix
from mnemos.attention.config import ModelConfig
from mnemos.attention.kv import KVCache

if TYPE_CHECKING:
    from mnemos.attention.decoder import Collect, Decoder, Layer

PackedFormat = Literal["auto", "int8", "int4"]
MAX_ROWS = 16  # tokens that one call takes: beyond, products of whole matrices are the faster way
_LOOK_ROWS = 64  # tokens of a look that one call takes
GROUP = 32  # columns that share a scale
_EXACT = 0.05  # steps of a group: four bits hold a four-bit file's weights to less, others' they don't
_ACTIVATIONS = {"silu": 0, "gelu_tanh": 1}
_MAX_ROTARIES = 4  # in full, within a window, none at all


class _Layer(ctypes.Structure):
    _fields_ = (
        ("qkv", Matrix),
        ("o", Matrix),
        ("gate", Matrix),
        ("up", Matrix),
        ("down", Matrix),
        ("attn_norm", ctypes.c_void_p),
        ("mlp_norm", ctypes.c_void_p),
        ("post_attn_norm", ctypes.c_void_p),
        ("post_mlp_norm", ctypes.c_void_p),
        ("qkv_bias", ctypes.c_void_p),
        ("qk_norm", ctypes.c_void_p),
        ("is_local", ctypes.c_int32),
        ("rotary", ctypes.c_int32),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.c_int32),
        ("hidden", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("kv_heads", ctypes.c_int32),
        ("dim", ctypes.c_int32),
        ("inner", ctypes.c_int32),
        ("vocab", ctypes.c_int32),
        ("activation", ctypes.c_int32),
        ("window", ctypes.c_int32),
        ("is_bf16", ctypes.c_int32),
        ("eps", ctypes.c_float),
        ("scale", ctypes.c_float),
        ("norm", ctypes.c_void_p),
        ("layer", ctypes.c_void_p),
        ("head", Matrix),
    )


class _Place(ctypes.Structure):
    _fields_ = (
        ("slot", ctypes.c_int32),
        ("position", ctypes.c_int32),
        ("memory_start", ctypes.c_int32),
        ("memory_end", ctypes.c_int32),
        ("capacity", ctypes.c_int32),
        ("temperature", ctypes.c_float),
        ("mass_scale", ctypes.c_float),
        ("k", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
    )


class _Call(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("logit_rows", ctypes.c_int32),
        ("rotary", ctypes.c_void_p * _MAX_ROTARIES),
        ("x", ctypes.c_void_p),
        ("place", ctypes.c_void_p),
        ("logits", ctypes.c_void_p),
        ("layers", ctypes.c_int32),
        ("queries", ctypes.c_void_p),
        ("hidden", ctypes.c_void_p),
    )


class PackedWeights:
    """`W [out, in]` in four or eight bits with a scale per 32 columns."""

    def __init__(self, library: ctypes.CDLL, weight: Tensor, form: PackedFormat) -> None:
        """`auto` is four bits where they hold the weights as they are, otherwise eight."""
        wide = weight.float().contiguous()
        out, inner = wide.shape
        self.bits = 4 if form == "int4" or (form == "auto" and self._pack(library, wide, 4, _EXACT)) else 8
        if form != "auto" or self.bits == 8:
            self._pack(library, wide, self.bits, 0.0)
        self._library = library
        groups = -(-inner // GROUP)
        self.matrix = Matrix(self.bits, out, inner, groups, self.data.data_ptr())

    def _pack(self, library: ctypes.CDLL, wide: Tensor, bits: int, tolerance: float) -> bool:
        """Whether the error stayed within the tolerance, which 0 leaves open."""
        out, inner = wide.shape
        self.data = torch.empty(library.mnemos_packed_bytes(out, inner, bits), dtype=torch.uint8)
        threads = torch.get_num_threads()
        worst = library.mnemos_pack(
            wide.data_ptr(), out, inner, bits, tolerance, self.data.data_ptr(), threads
        )
        if worst < 0:
            raise MemoryError("no memory to pack weights in")
        return tolerance == 0 or worst <= tolerance

    def __call__(self, x: Tensor) -> Tensor:
        """`x [rows, in]` to `[rows, out]`, in fp32."""
        x = x.float().contiguous()
        y = torch.empty(len(x), self.matrix.out)
        if self._library.mnemos_product(
            ctypes.byref(self.matrix), x.data_ptr(), len(x), y.data_ptr(), torch.get_num_threads()
        ):
            raise MemoryError("no memory for a product")
        return y


class CompiledStep:
    """The layers of one decoder as the compiled step reads them; packed at the first step."""

    def __init__(self, decoder: "Decoder", library: ctypes.CDLL, form: PackedFormat) -> None:
        self.library = library
        self.form = form
        self._packing = Lock()
        self._model: _Model | None = None
        self._kept: list[object] = []  # what the structures point to
        self.bits: dict[str, int] = {}  # of each kind of matrix, the most that one of its layers takes

    def forward(
        self, decoder: "Decoder", tokens: Sequence[int], cache: KVCache, logit_rows: int = 1
    ) -> Tensor:
        """Append the KV of up to `MAX_ROWS` tokens; logits of the last of them, `[logit_rows, vocab]`."""
        return self._run(decoder, [(tokens, cache)], logit_rows)

    def forward_many(self, decoder: "Decoder", rows: Sequence[tuple[Sequence[int], KVCache]]) -> list[Tensor]:
        """Append tokens to several caches at once; of each, the logits of all its tokens, `[tokens, vocab]`.

        A cache is named once. Nothing is appended to any where one has no room: `ContextOverflowError`.
        """
        counts = [len(tokens) for tokens, _ in rows]
        return list(torch.split(self._run(decoder, rows, sum(counts)), counts))

    def look(self, decoder: "Decoder", tokens: Sequence[int], cache: KVCache, collect: "Collect") -> None:
        """Append tokens as far as `collect` needs, and fill it; of layers above, the cache has nothing."""
        config = decoder.config
        for start in range(0, len(tokens), _LOOK_ROWS):
            piece = tokens[start : start + _LOOK_ROWS]
            queries = {
                layer: torch.empty(len(piece), config.heads, config.head_dim)
                for layer in collect.query_layers
            }
            hidden = {layer: torch.empty(len(piece), config.hidden_size) for layer in collect.hidden_layers}
            self._run(decoder, [(piece, cache)], 0, queries, hidden, collect.threads)
            for layer, found in queries.items():
                _join(collect.queries, layer, found.transpose(0, 1), 1)
            for layer, found in hidden.items():
                _join(collect.hidden, layer, found, 0)

    def _run(
        self,
        decoder: "Decoder",
        rows: Sequence[tuple[Sequence[int], KVCache]],
        logit_rows: int,
        queries: Mapping[int, Tensor] = MappingProxyType({}),
        hidden: Mapping[int, Tensor] = MappingProxyType({}),
        threads: int | None = None,
    ) -> Tensor:
        """With `queries [rows, heads, head_dim]` and `hidden [rows, hidden]` by layer, those are filled and
        no layer above them is run.
        """
        model = self._model or self._pack(decoder)
        for tokens, cache in rows:
            cache.reserve(len(tokens))
        flat = [token for tokens, _ in rows for token in tokens]
        # Row by row: one gather of many rows wakes PyTorch's own threads, which then spin beside ours.
        x = torch.empty(len(flat), model.hidden)
        for row, token in zip(x.unbind(), flat, strict=True):
            row.copy_(decoder.embed[token])
        if decoder.embedding_scale is not None:
            x = x * decoder.embedding_scale
        turns = []  # of each rotary: [rows, dim / 2], complex
        for rotary in decoder.rotaries:
            spans = [rotary.span(cache.next_position, len(tokens)) for tokens, cache in rows]
            turns.append(spans[0] if len(spans) == 1 else torch.cat(spans))
        places = (_Place * len(flat))(*(place for tokens, cache in rows for place in _places(cache, tokens)))
        logits = torch.empty(logit_rows, model.vocab)
        call = _Call(len(flat), threads or torch.get_num_threads(), logit_rows)
        for index, turn in enumerate(turns):
            call.rotary[index] = turn.data_ptr()
        call.x, call.place, call.logits = x.data_ptr(), ctypes.addressof(places), logits.data_ptr()
        call.layers = max((*queries, *hidden), default=model.layers - 1) + 1
        kept = [_addresses(found, model.layers) for found in (queries, hidden)]
        call.queries, call.hidden = (None if each is None else ctypes.addressof(each) for each in kept)
        if self.library.mnemos_step(ctypes.byref(model), ctypes.byref(call)):
            raise MemoryError("no memory for a step")
        for tokens, cache in rows:
            cache.advance(len(tokens))
        return logits

    def _pack(self, decoder: "Decoder") -> _Model:
        with self._packing:
            if self._model is not None:  # another thread has just packed it
                return self._model
            config = decoder.config
            layers = (_Layer * config.layers)()
            for index, layer in enumerate(decoder.layers):
                self._fill(layers[index], layer, config.intermediate_size)
            head_form: PackedFormat = "int8" if self.form == "int4" else self.form
            model = _Model(
                config.layers,
                config.hidden_size,
                config.heads,
                config.kv_heads,
                config.head_dim,
                config.intermediate_size,
                config.vocab_size,
                _ACTIVATIONS[config.activation],
                decoder.window or 0,
                decoder.dtype == torch.bfloat16,
                config.rms_norm_eps,
                decoder.scale,
                self._floats(decoder.norm),
                ctypes.addressof(layers),
                self._packed("head", decoder.lm_head.weight, head_form),
            )
            self._kept.append(layers)
            self._model = model
            return model

    def _fill(self, to: _Layer, layer: "Layer", inner: int) -> None:
        gate, up = layer.gate_up.weight[:inner], layer.gate_up.weight[inner:]
        for name, weight in (
            ("qkv", layer.qkv.weight),
            ("o", layer.o.weight),
            ("gate", gate),
            ("up", up),
            ("down", layer.down.weight),
        ):
            setattr(to, name, self._packed(name, weight, self.form))
        to.attn_norm, to.mlp_norm = self._floats(layer.attn_norm), self._floats(layer.mlp_norm)
        to.post_attn_norm = self._floats(layer.post_attn_norm)
        to.post_mlp_norm = self._floats(layer.post_mlp_norm)
        to.qkv_bias, to.qk_norm = self._floats(layer.qkv_bias), self._floats(layer.qk_norm)
        to.is_local, to.rotary = layer.is_local, layer.rotary

    def _packed(self, name: str, weight: Tensor, form: PackedFormat) -> Matrix:
        packed = PackedWeights(self.library, weight, form)
        self._kept.append(packed)
        self.bits[name] = max(self.bits.get(name, 0), packed.bits)
        return packed.matrix

    def _floats(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        wide = tensor.float().contiguous()
        self._kept.append(wide)
        return wide.data_ptr()


def _addresses(found: Mapping[int, Tensor], layers: int) -> "ctypes.Array[ctypes.c_void_p] | None":
    """Of what a call keeps, by layer."""
    if not found:
        return None
    return (ctypes.c_void_p * layers)(*(found[i].data_ptr() if i in found else None for i in range(layers)))


def _join(found: dict[int, Tensor], layer: int, piece: Tensor, dim: int) -> None:
    found[layer] = torch.cat([found[layer], piece], dim) if layer in found else piece


def _places(cache: KVCache, tokens: Sequence[int]) -> Iterator[_Place]:
    for index in range(len(tokens)):
        yield _Place(
            cache.length + index,
            cache.next_position + index,
            cache.memory_start,
            cache.memory_end,
            cache.capacity,
            cache.temperature,
            cache.mass_scale,
            cache.k.data_ptr(),
            cache.v.data_ptr(),
        )


def fits(config: ModelConfig, dtype: torch.dtype) -> bool:
    """Whether the compiled step knows all that a decoder of this model does, prefilled in `dtype`."""
    return (
        dtype in (torch.float32, torch.bfloat16)
        and config.activation in _ACTIVATIONS
        and config.head_dim % 2 == 0
    )
