"""Traces as bytes: what the bank keeps of a memory besides its text.

KV payload, little-endian:

    magic 'MKV1' | bits u8 | layers u16 | kv_heads u16 | head_dim u16 | spans u16 | tokens of each span u32
    then of each span: K codes, K scales, V codes, V scales

int4 codes lie two to a byte, int8 one to a byte, both row-major `[layers, kv_heads, tokens, head_dim]`;
scales are fp16. With 16 bits K and V are raw bf16 (or fp32, bits 32) and have no scales.

Routing payload:

    magic 'MRT1' | key_heads u16 | head_dim u16 | hidden u16 | spans u16 | tokens of each span u32
    keys int8 [tokens, key_heads, head_dim] | key scales fp16 [key_heads, head_dim] | hidden mean fp16
    [hidden]

With vectors of a trained router or a sentence encoder the magic is 'MRT2' and there follow

    form of the vectors, 8 bytes | vectors u16 | dims u16 | vectors int8 [vectors, dims]
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mnemos.attention.compiled import kernels
from mnemos.attention.compiled_read import can_expand
from mnemos.attention.config import ModelConfig
from mnemos.attention.kv import SpanKV
from mnemos.attention.packed_span import PackedSpan
from mnemos.attention.quantize import (
    dequantize_keys,
    dequantize_values,
    pack_nibbles,
    quantize_keys,
    quantize_values,
    token_groups,
    unpack_nibbles,
    value_group,
)
from mnemos.errors import BankUnreadableError, ModelMismatchError

TraceBits = Literal[4, 8, 16, 32]

_KV_HEAD = struct.Struct("<4sBHHHH")
_ROUTE_HEAD = struct.Struct("<4sHHHH")
_KV_MAGIC = b"MKV1"
_ROUTE_MAGIC = b"MRT1"
_VECTOR_MAGIC = b"MRT2"
_VECTOR_HEAD = struct.Struct("<8sHH")
VECTOR_HEAD_BYTES = _VECTOR_HEAD.size
_RAW = {16: torch.bfloat16, 32: torch.float32}


@dataclass(frozen=True, slots=True)
class RouteKeys:
    """Routing record of one memory."""

    held: Tensor  # [key_heads, tokens, head_dim], fp32; with a scale int8, [tokens, key_heads, head_dim]
    span_tokens: tuple[int, ...]
    hidden: Tensor  # [hidden], fp32: mean hidden state, centred by the calibration
    vectors: Tensor | None = None  # [vectors, dims], int8
    form: str = ""  # of the projection that made them
    scale: Tensor | None = None  # [key_heads, head_dim], fp32

    @property
    def keys(self) -> Tensor:
        """`[key_heads, tokens, head_dim]`, fp32."""
        if self.scale is None:
            return self.held
        return (self.held * self.scale).transpose(0, 1).contiguous()

    @property
    def tokens(self) -> int:
        return self.held.shape[1 if self.scale is None else 0]

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self._tensors())

    def zero_(self) -> None:
        """Overwrite the tensors, so that erased content does not linger in freed memory."""
        for each in self._tensors():
            each.zero_()

    def _tensors(self) -> list[Tensor]:
        return [each for each in (self.held, self.scale, self.hidden, self.vectors) if each is not None]


def encode_kv(spans: Sequence[SpanKV], bits: TraceBits) -> bytes:
    """Spans of one memory to a KV payload."""
    layers, kv_heads, _, dim = spans[0].k.shape
    parts = [_KV_HEAD.pack(_KV_MAGIC, bits, layers, kv_heads, dim, len(spans))]
    parts += [struct.pack("<I", span.tokens) for span in spans]
    for span in spans:
        if bits in _RAW:
            parts += [_bytes(t.to(_RAW[bits])) for t in (span.k, span.v)]
            continue
        width: Literal[4, 8] = 4 if bits == 4 else 8
        if span.k.is_cuda:
            from mnemos.attention.kernels.dispatch import quantize_pack  # which reads this module's format

            packed = quantize_pack(span.k.contiguous(), span.v.contiguous(), width)
            parts += [_bytes(part) for part in packed]
            continue
        for codes, scales in (quantize_keys(span.k, width), quantize_values(span.v, width)):
            parts += [_bytes(pack_nibbles(codes) if width == 4 else codes), _bytes(scales)]
    return b"".join(parts)


def decode_kv(
    payload: bytes | bytearray, config: ModelConfig, dtype: torch.dtype, *, packed: bool = False
) -> list[SpanKV]:
    """A KV payload to its spans in `dtype`; with `packed` those of four and eight bits are expanded where
    they are attended to, if there are kernels to do it.

    Raises `ModelMismatchError` when it has another model's shape, `BankUnreadableError` when it is malformed.
    """
    try:
        magic, bits, layers, kv_heads, dim, count = _KV_HEAD.unpack_from(payload)
        lengths = struct.unpack_from(f"<{count}I", payload, _KV_HEAD.size)
    except struct.error:
        raise _malformed("a KV block is shorter than its header") from None
    if magic != _KV_MAGIC or bits not in (4, 8, 16, 32):
        raise _malformed("a KV block has an unknown format")
    if (layers, kv_heads, dim) != (config.layers, config.kv_heads, config.head_dim):
        raise ModelMismatchError(
            "a memory's KV was made by a model of another shape; run `mnemos bank reencode` with the model "
            "to use"
        )
    reader = _Reader(payload, _KV_HEAD.size + 4 * count)
    library = kernels() if bits not in _RAW and can_expand(dim, dtype) else None
    spans: list[SpanKV] = []
    for tokens in lengths:
        shape = (layers, kv_heads, tokens, dim)
        reader.require(2 * layers * kv_heads * tokens * dim * bits // 8)  # before room is made for them
        if bits in _RAW:
            spans.append(SpanKV(*(reader.take(shape, _RAW[bits]).to(dtype) for _ in range(2))))
            continue
        k_scales = (2, layers, kv_heads, len(token_groups(tokens)), dim)
        v_scales = (2, layers, kv_heads, tokens, dim // value_group(dim))
        if library is not None:
            codes = math.prod(shape) * bits // 8
            sizes = (codes, 2 * math.prod(k_scales), codes, 2 * math.prod(v_scales))
            span = PackedSpan(library, reader.own(sum(sizes)), sizes, shape, bits, dtype)
            spans.append(span if packed else span.expanded())
            continue
        k, v = torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype)
        dequantize_keys(reader.codes(shape, bits), reader.take(k_scales, torch.float16), k)
        dequantize_values(reader.codes(shape, bits), reader.take(v_scales, torch.float16), v)
        spans.append(SpanKV(k, v))
    reader.finish()
    return spans


def encode_route(
    spans: Sequence[Tensor], hidden: Tensor, vectors: Tensor | None = None, form: str = ""
) -> bytes:
    """Token keys of each span `[key_heads, tokens, head_dim]` (int8 per channel), a hidden mean, and the
    vectors of a trained router if there is one, to bytes.
    """
    keys = torch.cat(list(spans), dim=1)
    heads, _, dim = keys.shape
    scale = (keys.abs().amax(dim=1) / 127).half()  # [heads, dim]
    step = scale.float().clamp_min(1e-8)[:, None]
    codes = (keys / step).round_().clamp_(-127, 127).to(torch.int8).transpose(0, 1)  # [tokens, heads, dim]
    magic = _ROUTE_MAGIC if vectors is None else _VECTOR_MAGIC
    head = _ROUTE_HEAD.pack(magic, heads, dim, hidden.shape[0], len(spans))
    sizes = struct.pack(f"<{len(spans)}I", *(span.shape[1] for span in spans))
    parts = [head, sizes, _bytes(codes), _bytes(scale), _bytes(hidden.half())]
    if vectors is not None:
        parts += [_VECTOR_HEAD.pack(bytes.fromhex(form), *vectors.shape), _bytes(vectors)]
    return b"".join(parts)


def decode_route(payload: bytes, *, coded: bool = False) -> RouteKeys:
    """A routing payload to keys, hidden mean and vectors; with `coded` the keys stay in eight bits. Raises
    `BankUnreadableError` when it is malformed.
    """
    try:
        magic, heads, dim, width, count = _ROUTE_HEAD.unpack_from(payload)
        sizes = struct.unpack_from(f"<{count}I", payload, _ROUTE_HEAD.size)
    except struct.error:
        raise _malformed("a routing record is shorter than its header") from None
    if magic not in (_ROUTE_MAGIC, _VECTOR_MAGIC):
        raise _malformed("a routing record has an unknown format")
    # In numpy: a query reads hundreds of these, and each tensor operation costs more than its numbers.
    tokens, start = sum(sizes), _ROUTE_HEAD.size + 4 * count
    codes_end = start + tokens * heads * dim
    scale_end = codes_end + 2 * heads * dim
    end = scale_end + 2 * width
    vectors, form = None, ""
    if magic == _VECTOR_MAGIC and len(payload) >= end + _VECTOR_HEAD.size:
        raw, number, dims = _VECTOR_HEAD.unpack_from(payload, end)
        start_of_vectors, end = end + _VECTOR_HEAD.size, end + _VECTOR_HEAD.size + number * dims
        if len(payload) == end:
            own = np.frombuffer(payload, np.int8, number * dims, start_of_vectors).copy()
            vectors, form = torch.from_numpy(own.reshape(number, dims)), raw.hex()
    if len(payload) != end or (magic == _VECTOR_MAGIC and vectors is None):
        raise _malformed(
            f"a memory's trace is {'shorter' if len(payload) <= end else 'longer'} than its header says"
        )
    codes = np.frombuffer(payload, np.int8, codes_end - start, start).reshape(tokens, heads, dim)
    scale = np.frombuffer(payload, np.float16, heads * dim, codes_end).reshape(heads, dim).astype(np.float32)
    hidden = torch.from_numpy(np.frombuffer(payload, np.float16, width, scale_end).astype(np.float32))
    if coded:
        held = torch.from_numpy(codes.copy())
        return RouteKeys(held, sizes, hidden, vectors, form, torch.from_numpy(scale))
    keys = np.multiply(codes, scale, dtype=np.float32).swapaxes(0, 1)
    return RouteKeys(torch.from_numpy(np.ascontiguousarray(keys)), sizes, hidden, vectors, form)


class _Reader:
    def __init__(self, payload: bytes | bytearray, offset: int) -> None:
        self._payload = payload
        self._offset = offset
        self._copied: Tensor | None = None

    @property
    def _data(self) -> Tensor:
        if self._copied is None:  # tensors are writable, a payload is not
            self._copied = torch.frombuffer(bytearray(self._payload), dtype=torch.uint8)
        return self._copied

    def own(self, size: int) -> np.ndarray:
        """The next bytes, to be written to: the payload's own where it was made for that."""
        self.require(size)
        data = np.frombuffer(self._payload, np.uint8, size, self._offset)
        self._offset += size
        return data if data.flags.writeable else data.copy()

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        size = math.prod(shape) * dtype.itemsize
        self.require(size)
        end = self._offset + size
        part = self._data[self._offset : end]
        self._offset = end
        if part.storage_offset() % dtype.itemsize:
            part = part.clone()
        return part.view(dtype).view(shape)

    def require(self, size: int) -> None:
        """Raises `BankUnreadableError` when fewer bytes are left."""
        if self._offset + size > len(self._payload):
            raise _malformed("a memory's trace is shorter than its header says")

    def codes(self, shape: tuple[int, ...], bits: int) -> Tensor:
        if bits == 8:
            return self.take(shape, torch.uint8)
        return unpack_nibbles(self.take((*shape[:-1], shape[-1] // 2), torch.uint8))

    def finish(self) -> None:
        if self._offset != len(self._payload):
            raise _malformed("a memory's trace is longer than its header says")


def _bytes(tensor: Tensor) -> bytes:
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _malformed(what: str) -> BankUnreadableError:
    return BankUnreadableError(f"{what}; run `mnemos bank verify --deep`")
