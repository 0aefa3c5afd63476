"""The mass that a query puts on the token keys of many memories, block by block.

A namespace's recent memories have 25 MB of keys: copied and scored as one piece they are fresh memory, and
touching that takes longer than the products. A block stays in the processor's cache.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from mnemos.attention.compiled import kernels
from mnemos.attention.compiled_read import can_weigh, weighed_spans
from mnemos.attention.memory_codec import RouteKeys

BLOCK_TOKENS = 4096


def span_sums(rows: Sequence[Tensor], records: Sequence[RouteKeys]) -> Tensor:
    """Softmax mass of each span of each record, summed over all rows: `[spans]`.

    `rows` has the scaled queries of each key head, `[query tokens, head_dim]`. The softmax of a row runs over
    the tokens of all records.
    """
    if (library := kernels()) is not None and records:
        codes = [record.held for record in records if record.scale is not None]
        scales = [record.scale for record in records if record.scale is not None]
        if len(scales) == len(records) and can_weigh(scales[0].shape[1]):
            return weighed_spans(library, rows, codes, scales, [each.span_tokens for each in records])
    return _plain_sums(rows, records)


def _plain_sums(rows: Sequence[Tensor], records: Sequence[RouteKeys]) -> Tensor:
    """`span_sums` in PyTorch's own products."""
    sums: list[list[Tensor]] = [[] for _ in rows]  # by key head, of each block: [query tokens, spans]
    tops: list[list[Tensor]] = [[] for _ in rows]  # the highest scores, which its sums are relative to
    for block in _blocks(records):
        keys = torch.cat([record.keys for record in block], dim=1)  # [key_heads, tokens, head_dim]
        lengths = [size for record in block for size in record.span_tokens]
        starts = np.cumsum([0, *lengths[:-1]])
        for head, queries in enumerate(rows):
            scores = queries @ keys[head].T  # [query tokens, tokens]
            top = scores.amax(dim=1, keepdim=True)
            mass = scores.sub_(top).exp_()
            sums[head].append(torch.from_numpy(np.add.reduceat(mass.numpy(), starts, axis=1)))
            tops[head].append(top)
    total = torch.zeros(sum(len(record.span_tokens) for record in records))
    for head_sums, head_tops in zip(sums, tops, strict=True):
        top = torch.cat(head_tops, dim=1)  # [query tokens, blocks]
        weights = (top - top.amax(dim=1, keepdim=True)).exp_()
        parts = torch.cat([part * weights[:, [at]] for at, part in enumerate(head_sums)], dim=1)
        total += (parts / parts.sum(dim=1, keepdim=True)).sum(dim=0)
    return total


def _blocks(records: Sequence[RouteKeys]) -> Iterator[Sequence[RouteKeys]]:
    """As many records at a time as have `BLOCK_TOKENS` tokens, or one."""
    start = 0
    while start < len(records):
        end, tokens = start + 1, records[start].tokens
        while end < len(records) and tokens + records[end].tokens <= BLOCK_TOKENS:
            tokens += records[end].tokens
            end += 1
        yield records[start:end]
        start = end
