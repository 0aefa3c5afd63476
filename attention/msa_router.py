"""Which documents an MSA layer reads: scores of a question's tokens against pooled routing keys.

Equation 2 of arXiv 2603.23516: the score of a chunk is the maximum over question tokens of the mean over
heads of a cosine (or scaled product, `MsaConfig.is_cosine`); a document scores as its best chunk does. A
mean over heads is linear, so each token needs one product with one folded query instead of one for each head.
The other reductions of the published code are honoured head by head.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from mnemos.attention.msa_config import MsaConfig


def routing_keys(pooled: Tensor, msa: MsaConfig) -> Tensor:
    """Pooled keys `[..., head_dim]` as they are scored, in fp32: of length one where a score is a cosine."""
    wide = pooled.float()
    return functional.normalize(wide, dim=-1) if msa.is_cosine else wide


def chunk_scores(queries: Tensor, keys: Tensor, msa: MsaConfig) -> Tensor:
    """Scores of chunks for a question, `[chunks]` in fp32.

    `queries [heads, tokens, head_dim]` are of the question alone, `keys [kv_heads, chunks, head_dim]` from
    `routing_keys`. Heads share keys in consecutive groups.
    """
    if msa.head_reduce == "mean":
        by_token = fold_queries(queries, len(keys), msa) @ flat_keys(keys).T  # [tokens, chunks]
    else:
        by_token = _by_head(queries, keys, msa).amax(dim=0)
    return _over_tokens(by_token, msa)


def chunk_scores_naive(queries: Tensor, keys: Tensor, msa: MsaConfig) -> Tensor:
    """As `chunk_scores`, with a product for every head."""
    heads = _by_head(queries, keys, msa)
    return _over_tokens(heads.mean(dim=0) if msa.head_reduce == "mean" else heads.amax(dim=0), msa)


def fold_queries(queries: Tensor, kv_heads: int, msa: MsaConfig) -> Tensor:
    """One query per token, `[tokens, kv_heads * head_dim]`: its product with `flat_keys` is the mean over
    heads.
    """
    heads, tokens, dim = queries.shape
    grouped = _scaled(queries, msa).view(kv_heads, heads // kv_heads, tokens, dim)
    return (grouped.sum(dim=1) / heads).transpose(0, 1).reshape(tokens, kv_heads * dim)


def flat_keys(keys: Tensor) -> Tensor:
    """`[kv_heads, chunks, head_dim]` to the rows that a folded query is multiplied with, `[chunks, ...]`."""
    return keys.transpose(0, 1).reshape(keys.shape[1], -1)


def document_scores(scores: Tensor, chunks: Sequence[int], msa: MsaConfig) -> Tensor:
    """Chunk scores `[chunks]`, document after document, to `[documents]`; `chunks` counts those of each."""
    owner = torch.repeat_interleave(torch.arange(len(chunks)), torch.tensor(list(chunks), dtype=torch.long))
    reduce = "amax" if msa.chunk_reduce == "max" else "mean"
    empty = torch.full((len(chunks),), -torch.inf)
    return empty.scatter_reduce(0, owner, scores, reduce, include_self=False)


def top_documents(scores: Tensor, top_k: int) -> list[int]:
    """Indices of the best `top_k`, best first; of equal ones the earlier first."""
    return [int(index) for index in scores.argsort(descending=True, stable=True)[:top_k]]


def _by_head(queries: Tensor, keys: Tensor, msa: MsaConfig) -> Tensor:
    """`[heads, tokens, chunks]`."""
    shared = keys.repeat_interleave(len(queries) // len(keys), dim=0)  # [heads, chunks, dim]
    return torch.bmm(_scaled(queries, msa), shared.transpose(1, 2))


def _scaled(queries: Tensor, msa: MsaConfig) -> Tensor:
    wide = queries.float()
    return functional.normalize(wide, dim=-1) if msa.is_cosine else wide * wide.shape[-1] ** -0.5


def _over_tokens(by_token: Tensor, msa: MsaConfig) -> Tensor:
    """`[tokens, chunks]` to `[chunks]`."""
    if msa.query_reduce == "last":
        return by_token[-1]
    return by_token.amax(dim=0) if msa.query_reduce == "max" else by_token.mean(dim=0)
