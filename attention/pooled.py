"""Memories as an MSA checkpoint keeps them: K, V and routing keys, averaged over chunks of a document.

Each document runs through the model alone at positions from 0 (document-wise RoPE) and sees no template. K is
pooled after norm and RoPE, V as it is, both in the layers that route; routing keys come from projections of
their own without norm and RoPE, or are the pooled K where `decouple_router` is off (arXiv 2603.23516,
sections 3.2 and 3.4; the published code for what the paper leaves open). The last chunk is the mean of the
tokens it has.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mnemos.attention.decoder import Collect, Decoder
from mnemos.attention.kv import SpanKV
from mnemos.attention.msa_config import MsaConfig
from mnemos.attention.pooled_cache import PooledCache, PooledKeys
from mnemos.errors import InvalidWeightsError


@dataclass(frozen=True, slots=True)
class PooledDocument:
    """One document of an MSA model."""

    tokens: int
    kv: SpanKV  # [router layers, kv_heads, chunks, head_dim], in the compute dtype
    keys: Tensor  # [router layers, kv_heads, chunks, head_dim], fp32, pooled and not normalised


def pool(states: Tensor, tokens_per_chunk: int) -> Tensor:
    """Means of consecutive tokens, in fp32: `[..., tokens, dim]` to `[..., chunks, dim]`."""
    parts = torch.split(states.float(), tokens_per_chunk, dim=-2)
    return torch.stack([part.mean(dim=-2) for part in parts], dim=-2)


def msa_of(decoder: Decoder) -> MsaConfig:
    """The model's `msa_config`. Raises InvalidWeightsError when it has none."""
    if decoder.config.msa is None:
        raise InvalidWeightsError(
            f"model {decoder.config.name} has no msa_config: it can't read pooled memories"
        )
    return decoder.config.msa


@torch.inference_mode()
def encode_document(decoder: Decoder, tokens: Sequence[int]) -> PooledDocument:
    """Run one document alone and pool it.

    Raises ContextOverflowError when it is longer than the model's window.
    """
    msa = msa_of(decoder)
    cache = decoder.new_cache(len(tokens))
    collect = Collect(hidden_layers=msa.router_layers if msa.decouple_router else ())
    decoder.prefill(tokens, cache, collect=collect)
    rows = list(msa.router_layers)
    k = pool(cache.k[rows], msa.pooling_tokens)
    v = pool(cache.v[rows], msa.pooling_tokens)
    if msa.decouple_router:
        raw = torch.stack([decoder.router_keys(layer, collect.hidden[layer]) for layer in rows])
        keys = pool(raw, msa.pooling_tokens)
    else:
        keys = k
    cache.zero_()
    return PooledDocument(len(tokens), SpanKV(k.to(decoder.dtype), v.to(decoder.dtype)), keys)


def encode_template(decoder: Decoder, tokens: Sequence[int]) -> SpanKV:
    """KV of the template's opening tokens in every layer, at positions from 0."""
    cache = decoder.new_cache(len(tokens))
    decoder.prefill(tokens, cache)
    return cache.snapshot(0, cache.length)


def new_pooled_cache(decoder: Decoder, capacity: int, template: SpanKV, documents: PooledKeys) -> PooledCache:
    """A cache with the template in it, `documents` to choose from and room for `capacity` tokens."""
    cache = PooledCache(decoder.config, template.tokens + capacity, decoder.dtype, documents)
    cache.load_template(template)
    return cache
