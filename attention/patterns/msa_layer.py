"""The two halves of an MSA layer (arXiv 2603.23516): encoding documents alone, and reading them."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mnemos.attention.patterns import pooled_bank
from mnemos.attention.patterns.documents import Blocks
from mnemos.attention.patterns.mixer import MixerConfig
from mnemos.attention.patterns.msa_reading import Memory, attend_reading
from mnemos.attention.patterns.pooled_bank import PooledBank
from mnemos.attention.patterns.projections import Projections, attend, rotate


class MsaProjections(Projections):
    """Those of the attention, and the router's own: as many heads, without positions."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__(config)
        self.router_query = nn.Linear(config.dim, config.heads * config.head_dim, bias=False)
        self.router_key = nn.Linear(config.dim, config.kv_heads * config.head_dim, bias=False)
        self.chunks = -(-config.document // config.pool)  # of the longest document


class OpenDocument(NamedTuple):
    """K and V of the tokens before, and which of them are of the document that goes on."""

    k: Tensor  # [batch, kv_heads, open, key_dim]
    v: Tensor  # [batch, kv_heads, open, head_dim]
    kept: Tensor  # [batch, open]


class Reading(NamedTuple):
    """What the last documents came to."""

    mixed: Tensor  # [questions, tokens, heads * head_dim]
    k: Tensor  # [questions, kv_heads, tokens, key_dim], their own
    v: Tensor  # [questions, kv_heads, tokens, head_dim]
    best: Tensor  # [batch, documents]
    scores: Tensor  # [batch, documents], with gradients; -inf where nothing asks


def encode(
    projections: MsaProjections, x: Tensor, local: Tensor, there: Tensor, attends: bool
) -> tuple[Tensor, ...]:
    """Some documents, each alone: what their tokens come to, then the fields of a `PooledBank`, in a line.

    `x [documents, slots, dim]`, the positions in the documents `local [documents, slots]`, and whether the
    slots hold a token, `there`. The first result is [documents, slots, heads * head_dim]; it is empty where
    `attends` is False.
    """
    config = projections.config
    q, k, v = projections.split(x, local)
    mixed = attend(q, k, v, projections.scale).transpose(1, 2).flatten(2) if attends else x.new_empty(0)
    mean_x, mean_k, mean_v = (
        pooled_bank.pool(states, there, config.pool, projections.chunks)
        for states in (x, k.transpose(1, 2), v.transpose(1, 2))
    )
    if config.position == "rope":  # the question starts at top_k, documents at 0
        offset = local.new_full(mean_k.shape[:2], -config.top_k)
        mean_k = rotate(mean_k.transpose(1, 2), offset, config.rope_theta).transpose(1, 2)
    elif config.position == "alibi":  # all at position 0
        mean_k = functional.pad(mean_k[..., : config.head_dim], (0, projections.key_dim - config.head_dim))
    # The projection is linear, so that of a mean is the mean of those of its tokens.
    keys = pooled_bank.routing_keys(projections.router_key(mean_x), config.kv_heads)
    return mixed, mean_k, mean_v, keys, -(-there.sum(dim=1) // config.pool)


def look_up(
    projections: MsaProjections,
    x: Tensor,
    rows: Tensor,
    bank: PooledBank,
    used: Tensor,
    best: Tensor,
    asks: Tensor,
) -> Memory:
    """Routes `x [questions, tokens, dim]` to the bank's documents of the sequences `rows [questions]`.

    `used [questions, documents]` as the bank's, 0 for documents that a question may not read; `best
    [questions, documents]` from its earlier tokens; `asks [questions, tokens]`.
    """
    config = projections.config
    queries = pooled_bank.fold(projections.router_query(x), config.heads, config.kv_heads)
    alone = len(bank.keys) == 1  # no copy for each question then
    routing = bank.keys.expand(len(rows), -1, -1, -1) if alone else bank.keys[rows]
    with torch.no_grad():
        similar = pooled_bank.similarities(queries, routing, used)
    chosen = pooled_bank.select(similar, asks, best, config.top_k)
    found = pooled_bank.scores(queries, routing, similar, asks)
    return Memory(bank, rows, chosen.documents, chosen.visible, chosen.best, torch.maximum(found, best))


def read_bank(
    projections: MsaProjections,
    x: Tensor,
    local: Tensor,
    last: Blocks,
    opened: OpenDocument,
    bank: PooledBank | None,
    best: Tensor,
    asks: Tensor,
) -> Reading:
    """New tokens of the last documents, attending to those before them in the document, and to the bank.

    Args:
        projections: the layer's weights.
        x: [questions, tokens, dim], one row for each sequence that has new tokens.
        local: [questions, tokens], their positions in their documents.
        last: where they are.
        opened: what is before them.
        bank: the documents of each sequence; None to read none.
        best: [batch, documents], their scores for the tokens before.
        asks: [questions, tokens], which tokens route.
    """
    config = projections.config
    q, k, v = projections.split(x, local)
    scores = torch.full_like(best, -torch.inf)
    if not len(last.rows):
        return Reading(q[..., : config.head_dim].transpose(1, 2).flatten(2), k, v, best, scores)
    rows = last.rows
    there = torch.cat((opened.kept[rows], last.there), dim=1)
    keys, values = torch.cat((opened.k[rows], k), dim=2), torch.cat((opened.v[rows], v), dim=2)
    memory = None
    if bank is not None and bank.used.shape[1]:
        memory = look_up(projections, x, rows, bank, bank.used[rows], best[rows], asks)
        scores = scores.index_put((rows,), memory.scores.to(scores.dtype))
        best = best.index_put((rows,), memory.best.to(best.dtype))
    mixed = attend_reading(q, keys, values, there, projections.scale, memory)
    return Reading(mixed.transpose(1, 2).flatten(2), k, v, best, scores)
