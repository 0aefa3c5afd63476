"""Documents of a sequence: where they begin, and their tokens as rows of a batch of their own."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mnemos.attention.patterns.mixer import PADDING


def begins_document(positions: Tensor, before: Tensor | None = None) -> Tensor:
    """Where a document begins: bool `[batch, tokens]`.

    That is at a sequence's first token that is there, and where a position is not above the one before it.
    Padding between the two does not count.

    Args:
        positions: [batch, tokens] int64, `PADDING` for tokens that are not there.
        before: [batch] int64, the last position of what went before; `PADDING` where nothing did.
    """
    there = positions != PADDING
    if before is None:
        before = positions.new_full((len(positions),), PADDING)
    index = torch.arange(positions.shape[1], device=positions.device).expand_as(positions)
    latest = torch.where(there, index, -1).cummax(dim=1).values  # index of the last token up to here, or -1
    previous = torch.cat((latest.new_full((len(positions), 1), -1), latest[:, :-1]), dim=1)
    earlier = torch.where(previous < 0, before[:, None], positions.gather(1, previous.clamp(min=0)))
    return there & ((earlier == PADDING) | (positions <= earlier))


@dataclass(frozen=True, slots=True)
class DocumentRows:
    """Documents of like length as rows: a token is at `index` of the flattened batch."""

    index: Tensor  # [documents, longest] int64; 0 where there is no token
    positions: Tensor  # [documents, longest] int64, PADDING where there is no token


def rows_of(positions: Tensor) -> list[DocumentRows]:
    """All documents of `positions [batch, tokens]`, in groups whose lengths differ by less than twice.

    So no more than half of all rows is padding, however the lengths are spread.
    """
    flat = positions.flatten()
    there = (flat != PADDING).nonzero()[:, 0]  # [n] of the tokens
    starts = begins_document(positions).flatten()[there]  # [n]
    document = starts.cumsum(0) - 1  # [n]
    first = starts.nonzero()[:, 0]  # [documents]
    lengths = torch.bincount(document, minlength=len(first))
    groups = torch.frexp(lengths.double()).exponent
    rows = []
    for group in torch.unique(groups).tolist():
        members = (groups == group).nonzero()[:, 0]
        longest = int(lengths[members].max())
        slot = torch.arange(longest, device=flat.device)
        is_token = slot < lengths[members, None]  # [members, longest]
        index = there[torch.where(is_token, first[members, None] + slot, 0)]
        rows.append(
            DocumentRows(torch.where(is_token, index, 0), torch.where(is_token, flat[index], PADDING))
        )
    return rows


def by_document(mix: Callable[[Tensor, Tensor], Tensor], x: Tensor, rows: list[DocumentRows]) -> Tensor:
    """`mix(x, positions)` of every document alone: `x [batch, tokens, dim]` in and out, zero where padded."""
    flat = x.flatten(0, 1)
    mixed = torch.zeros_like(flat)
    for group in rows:
        there = group.positions != PADDING
        y = mix(flat[group.index], group.positions)  # [documents, longest, dim]
        mixed = mixed.index_put((group.index[there],), y[there].to(mixed.dtype))
    return mixed.view_as(x)
