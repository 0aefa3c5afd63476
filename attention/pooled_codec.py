"""Pooled traces as bytes: what the bank keeps of a memory for an MSA checkpoint.

KV payload, little-endian:

    magic 'MPK1' | bits u8 | router layers u16 | kv_heads u16 | head_dim u16 | pooling u16 | chunks u32
    then K and V

Routing payload:

    magic 'MPR1' | the same fields | keys

Every tensor is raw, `[router layers, kv_heads, chunks, head_dim]`: bf16 with 16 bits, fp32 with 32. A chunk
is the mean of `pooling` tokens: there is little of it, and quantising it would save little.
"""

import struct
from typing import Literal

import torch
from torch import Tensor

from mnemos.attention.config import ModelConfig
from mnemos.attention.kv import SpanKV
from mnemos.attention.memory_codec import RouteKeys
from mnemos.attention.msa_config import MsaConfig
from mnemos.errors import BankUnreadableError, InvalidWeightsError, ModelMismatchError

PooledBits = Literal[16, 32]

_HEAD = struct.Struct("<4sBHHHHI")
_KV_MAGIC, _ROUTE_MAGIC = b"MPK1", b"MPR1"
_DTYPES = {16: torch.bfloat16, 32: torch.float32}


def encode_pooled_kv(span: SpanKV, msa: MsaConfig, bits: PooledBits) -> bytes:
    """Pooled K and V of one memory to a KV payload."""
    return _encode(_KV_MAGIC, (span.k, span.v), msa, bits)


def decode_pooled_kv(payload: bytes | bytearray, config: ModelConfig, dtype: torch.dtype) -> list[SpanKV]:
    """A KV payload to its one span, in `dtype`.

    Raises `ModelMismatchError` when it has another model's shape, `BankUnreadableError` when it is malformed.
    """
    k, v = _decode(payload, _KV_MAGIC, 2, config)
    return [SpanKV(k.to(dtype), v.to(dtype))]


def encode_pooled_route(keys: Tensor, msa: MsaConfig, bits: PooledBits) -> bytes:
    """Pooled routing keys of one memory, not normalised, to a routing payload."""
    return _encode(_ROUTE_MAGIC, (keys,), msa, bits)


def decode_pooled_route(payload: bytes, config: ModelConfig) -> RouteKeys:
    """A routing payload to fp32 keys `[router layers * kv_heads, chunks, head_dim]`; raises as
    `decode_pooled_kv`.
    """
    (keys,) = _decode(payload, _ROUTE_MAGIC, 1, config)
    return RouteKeys(keys.float().flatten(0, 1), (keys.shape[2],), torch.empty(0))


def _encode(magic: bytes, tensors: tuple[Tensor, ...], msa: MsaConfig, bits: PooledBits) -> bytes:
    layers, kv_heads, chunks, dim = tensors[0].shape
    head = _HEAD.pack(magic, bits, layers, kv_heads, dim, msa.pooling_tokens, chunks)
    raw = [t.to(_DTYPES[bits]).contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for t in tensors]
    return b"".join([head, *raw])


def _decode(payload: bytes | bytearray, magic: bytes, count: int, config: ModelConfig) -> tuple[Tensor, ...]:
    msa = config.msa
    if msa is None:
        raise InvalidWeightsError(f"model {config.name} has no msa_config: it can't read pooled memories")
    try:
        found, bits, layers, kv_heads, dim, pooling, chunks = _HEAD.unpack_from(payload)
    except struct.error:
        raise _malformed("a pooled trace is shorter than its header") from None
    if found != magic or bits not in _DTYPES or chunks < 1:
        raise _malformed("a pooled trace has an unknown format")
    shape = (layers, kv_heads, dim, pooling)
    if shape != (len(msa.router_layers), config.kv_heads, config.head_dim, msa.pooling_tokens):
        raise ModelMismatchError(
            "a memory's pooled trace was made by a model of another shape; run `mnemos bank reencode` with "
            "the model to use"
        )
    size = layers * kv_heads * chunks * dim * bits // 8
    if len(payload) != _HEAD.size + count * size:
        raise _malformed("a pooled trace isn't as long as its header says")
    data = torch.frombuffer(bytearray(payload[_HEAD.size :]), dtype=torch.uint8)
    return tuple(
        part.view(_DTYPES[bits]).view(layers, kv_heads, chunks, dim) for part in torch.split(data, size)
    )


def _malformed(what: str) -> BankUnreadableError:
    return BankUnreadableError(f"{what}; run `mnemos bank verify --deep`")
