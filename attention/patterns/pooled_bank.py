"""Documents as an MSA layer keeps them while it trains, and which of them each token of a question reads.

The score of a document for a question is the maximum over the question's tokens, and over the document's
chunks, of the mean over heads of a cosine (arXiv 2603.23516, equation 2). The mean over heads is linear, so a
token has one folded query and a chunk one key, both `[features]` = kv_heads * head_dim.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class PooledBank(NamedTuple):
    """Pooled documents of a batch; those of a row stand first, `used` is 0 behind them."""

    k: Tensor  # [batch, documents, chunks, kv_heads, key_dim]
    v: Tensor  # [batch, documents, chunks, kv_heads, head_dim]
    keys: Tensor  # [batch, documents, chunks, features]: routing keys, of length one in each head
    used: Tensor  # [batch, documents]: how many chunks a document has


class Selection(NamedTuple):
    """What question tokens read."""

    documents: Tensor  # [questions, read]: all that any token of the question reads, in any order
    visible: Tensor  # [questions, tokens, read]: which of them each token reads
    best: Tensor  # [questions, documents]: scores after the last token, without gradient


def pool(states: Tensor, there: Tensor, tokens_per_chunk: int, chunks: int) -> Tensor:
    """Means over the tokens of each chunk, `[documents, slots, ...]` to `[documents, chunks, ...]`.

    `there [documents, slots]` says which slots hold tokens; a chunk without any is zero.
    """
    shape = states.shape
    flat = states.flatten(2) * there[..., None]
    short = chunks * tokens_per_chunk - shape[1]
    flat = functional.pad(flat, (0, 0, 0, short)).view(shape[0], chunks, tokens_per_chunk, flat.shape[-1])
    count = functional.pad(there, (0, short)).view(shape[0], chunks, tokens_per_chunk).sum(dim=-1)
    return (flat.sum(dim=2) / count.clamp_min(1)[..., None]).view(shape[0], chunks, *shape[2:])


def fold(queries: Tensor, heads: int, kv_heads: int) -> Tensor:
    """Routing queries `[..., heads * head_dim]` to `[..., features]`, whose products are means over heads."""
    split = functional.normalize(torch.unflatten(queries, -1, (kv_heads, heads // kv_heads, -1)), dim=-1)
    return (split.sum(dim=-2) / heads).flatten(-2)


def routing_keys(pooled: Tensor, kv_heads: int) -> Tensor:
    """Pooled keys `[..., features]`, each head of length one."""
    return functional.normalize(torch.unflatten(pooled, -1, (kv_heads, -1)), dim=-1).flatten(-2)


def empty_bank(k: Tensor, v: Tensor, features: int, chunks: int) -> PooledBank:
    """Without documents. k and v `[batch, kv_heads, any, ...]` say what its tensors are like."""
    batch, kv_heads = k.shape[:2]
    return PooledBank(
        k.new_empty(batch, 0, chunks, kv_heads, k.shape[3]),
        v.new_empty(batch, 0, chunks, kv_heads, v.shape[3]),
        k.new_empty(batch, 0, chunks, features),
        torch.empty(batch, 0, dtype=torch.int64, device=k.device),
    )


def arrange(documents: PooledBank, counts: Tensor) -> PooledBank:
    """Documents in a line, `[documents, ...]`, the first `counts[0]` of row 0 and so on, as a bank."""
    begin = counts.cumsum(0) - counts
    column = torch.arange(int(counts.amax()), device=counts.device)
    there = column < counts[:, None]  # [batch, documents]
    index = torch.where(there, begin[:, None] + column, 0).flatten()
    parts = PooledBank(*(torch.unflatten(part.index_select(0, index), 0, there.shape) for part in documents))
    return parts._replace(used=parts.used * there)


def join(bank: PooledBank, more: PooledBank, best: Tensor) -> tuple[PooledBank, Tensor]:
    """The documents of both, and `best [batch, documents]` of the first, -inf for the others, likewise.

    Documents that are not there move to the end and are cut off where no row has more.
    """
    if not more.used.shape[1]:
        return bank, best
    best = torch.cat((best, best.new_full(more.used.shape, -torch.inf)), dim=1)
    if not bank.used.shape[1]:
        return more, best
    both = PooledBank(*(torch.cat(parts, dim=1) for parts in zip(bank, more, strict=True)))
    most = int((both.used > 0).sum(dim=1).amax())
    order = (both.used == 0).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
    rows = torch.arange(len(order), device=order.device)
    return take(both, rows, order), best.gather(1, order)


def take(bank: PooledBank, rows: Tensor, columns: Tensor) -> PooledBank:
    """The documents `columns [n, m]` of the sequences `rows [n]`."""
    flat = (rows[:, None] * bank.used.shape[1] + columns).flatten()
    return PooledBank(
        *(torch.unflatten(part.flatten(0, 1).index_select(0, flat), 0, columns.shape) for part in bank)
    )


def similarities(queries: Tensor, keys: Tensor, used: Tensor) -> Tensor:
    """Products of folded queries and chunks, `[questions, tokens, documents, chunks]`, not for gradients.

    `queries [questions, tokens, features]`, `keys` and `used` as in the bank; -inf for chunks not there.
    """
    found = queries @ keys.flatten(1, 2).transpose(1, 2)
    absent = (
        torch.arange(keys.shape[2], device=used.device) >= used[..., None]
    )  # [questions, documents, chunks]
    found.masked_fill_(absent.flatten(1)[:, None], -torch.inf)
    return torch.unflatten(found, 2, keys.shape[1:3])


@torch.no_grad()
def select(similar: Tensor, asks: Tensor, best: Tensor, top_k: int) -> Selection:
    """Each token reads the documents that score highest for the question up to and with that token.

    `asks [questions, tokens]`: which tokens count for the question; `best [questions, documents]`: scores
    from its earlier tokens, -inf where there are none.
    """
    by_token = similar.amax(dim=3).masked_fill_(~asks[..., None], -torch.inf)
    running = torch.maximum(by_token.cummax(dim=1).values, best[:, None])
    top = running.topk(min(top_k, running.shape[2]), dim=2)
    read = torch.zeros_like(running, dtype=torch.bool).scatter_(2, top.indices, top.values > -torch.inf)
    any_reads = read.any(dim=1)
    most = int(any_reads.sum(dim=1).amax())
    documents = any_reads.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
    visible = read.gather(2, documents[:, None].expand(-1, read.shape[1], -1))
    return Selection(documents, visible, running[:, -1])


def scores(queries: Tensor, keys: Tensor, similar: Tensor, asks: Tensor) -> Tensor:
    """Scores of documents for all tokens that ask, `[questions, documents]`, with gradients.

    -inf where nothing asks. Only the pair that decides a score is multiplied again: a maximum has no other
    gradients.
    """
    with torch.no_grad():
        by_chunk, token = similar.masked_fill(~asks[..., None, None], -torch.inf).max(dim=1)
        value, chunk = by_chunk.max(dim=2)  # [questions, documents]
        token = token.gather(2, chunk[..., None])[..., 0]
    asked = queries.gather(1, token[..., None].expand(-1, -1, queries.shape[2]))
    answered = keys.gather(2, chunk[..., None, None].expand(-1, -1, 1, keys.shape[3]))[:, :, 0]
    return torch.where(value > -torch.inf, (asked * answered).sum(dim=-1), -torch.inf)
