"""Scores of memories for a query from the model's own attention: which memories would its retrieval heads
look at.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mnemos.attention.block_mass import span_sums
from mnemos.attention.calibration import Calibration
from mnemos.attention.decoder import Collect, Decoder
from mnemos.attention.encode import key_pairs
from mnemos.attention.kv import KVCache
from mnemos.attention.memory_codec import RouteKeys
from mnemos.attention.projection import Projection, similarity_scale


@dataclass(frozen=True, slots=True)
class RouteQuery:
    """The query's side of routing."""

    queries: Tensor  # [retrieval heads, tokens, head_dim], fp32, for scores at head_dim ** -0.5
    hidden: Tensor | None  # [hidden], fp32, centred
    vector: Tensor | None = None  # [dims], int8, of a trained router or a sentence encoder


def route_query(
    decoder: Decoder,
    calibration: Calibration,
    cache: KVCache,
    tokens: Sequence[int],
    projection: Projection | None = None,
    threads: int | None = None,
) -> RouteQuery:
    """Run `tokens` behind the cache as far as routing needs; the cache is left as it was. `threads` are of
    compiled code, all of PyTorch's without a number.
    """
    layers = tuple(dict.fromkeys(layer for layer, _ in calibration.key_heads))
    hidden_layers = () if calibration.hidden_layer is None else (calibration.hidden_layer,)
    projected = () if projection is None else (projection.layer,)
    collect = Collect(layers, (*hidden_layers, *projected), few_bits=True, threads=threads)
    decoder.probe(tokens, cache, collect)
    queries = torch.stack([collect.queries[layer][head] for layer, head in calibration.key_heads])
    # Scores are taken at head_dim ** -0.5; the queries carry what a family's own scale differs by.
    queries = queries * (decoder.scale * queries.shape[-1] ** 0.5)
    hidden = None
    if hidden_layers:
        hidden = collect.hidden[hidden_layers[0]].mean(dim=0) - torch.tensor(calibration.hidden_centre)
    vector = None if projection is None else projection.query(collect.hidden[projection.layer])
    return RouteQuery(queries, hidden, vector)


def span_mass(
    query: RouteQuery, records: Sequence[RouteKeys], calibration: Calibration, group: int
) -> Tensor:
    """Softmax mass that the retrieval heads put on each span of each record, `[spans]`, summing to 1.

    The softmax runs over the tokens of all `records`; the mass is its mean over query tokens and heads.
    """
    if not records:
        return torch.empty(0)
    heads, tokens, dim = query.queries.shape
    rows = [queries * dim**-0.5 for queries in asked_of_keys(query, calibration, group)]
    return span_sums(rows, records) / float(heads * tokens)


def asked_of_keys(query: RouteQuery, calibration: Calibration, group: int) -> list[Tensor]:
    """The queries of the retrieval heads behind each key head, `[queries, head_dim]`, in the order of
    `key_pairs`.
    """
    pairs = key_pairs(calibration, group)
    behind = [pairs.index((layer, head // group)) for layer, head in calibration.key_heads]
    return [  # the heads that read the same keys go together
        torch.cat([query.queries[head] for head, read in enumerate(behind) if read == pair])
        for pair in range(len(pairs))
    ]


def record_mass(mass: Tensor, records: Sequence[RouteKeys]) -> Tensor:
    """Log of the mass of each record, `[records]`, from that of its spans."""
    # In numpy: for so few numbers PyTorch's logarithm wakes threads, which takes longer than all of it.
    owner = np.repeat(np.arange(len(records)), [len(record.span_tokens) for record in records])
    whole = np.bincount(owner, mass.numpy(), len(records))
    return torch.from_numpy(np.log(whole.clip(1e-12)).astype(np.float32))


def vector_similarity(query: RouteQuery, vectors: Sequence[NDArray[np.int8] | None]) -> Tensor:
    """How near each memory's nearest vector comes, `[memories]`; the mean of the others for one without
    any. `vectors` are `[vectors, dims]` each.
    """
    assert query.vector is not None, "a query with a vector"
    known = [each for each in vectors if each is not None]
    if not known:
        return torch.zeros(len(vectors))
    # In numpy, whose loops wake no threads. Each sum of products is a whole number that fp32 can hold.
    wide = np.concatenate(known).astype(np.float32)
    products = np.einsum("vd,d->v", wide, query.vector.numpy().astype(np.float32))
    ends = np.cumsum([len(each) for each in known])
    near = np.maximum.reduceat(products, np.concatenate([[0], ends[:-1]]))
    near /= np.float32(similarity_scale(wide.shape[1]))
    found = np.full(len(vectors), near.mean(), dtype=np.float32)
    found[[each is not None for each in vectors]] = near
    return torch.from_numpy(found)


def hidden_cosine(query: RouteQuery, records: Sequence[RouteKeys]) -> Tensor:
    """Cosine of centred mean hidden states, `[memories]`; zeros when the model has no such calibration."""
    if query.hidden is None or not records:
        return torch.zeros(len(records))
    stacked = torch.stack([record.hidden for record in records])
    return torch.nn.functional.cosine_similarity(stacked, query.hidden[None], dim=-1)
