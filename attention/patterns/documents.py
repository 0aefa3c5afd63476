"""Sequences cut into documents, and documents laid out as the rows of one block."""

from typing import NamedTuple

import torch
from torch import Tensor

from mnemos.attention.patterns.mixer import PADDING


class Documents(NamedTuple):
    """Which document each token is of. Documents of a row are counted from 0; -1 for padding."""

    number: Tensor  # [batch, tokens]
    slot: Tensor  # [batch, tokens]: how many tokens of its document are before it
    local: Tensor  # [batch, tokens]: its position, counted from its document's first token
    counts: Tensor  # [batch]: documents of each row


class Blocks(NamedTuple):
    """Some documents, one a row. Slots behind a document's end repeat its first token."""

    token: Tensor  # [documents, slots]: which token of the batch, in the flat order of [batch, tokens]
    there: Tensor  # [documents, slots]: whether the slot holds a token
    rows: Tensor  # [documents]: the sequence that each is of

    def gather(self, tokens: Tensor) -> Tensor:
        """`tokens [batch * tokens, ...]` to `[documents, slots, ...]`."""
        return torch.unflatten(tokens.index_select(0, self.token.flatten()), 0, self.token.shape)


def find_documents(positions: Tensor, longest: int) -> Documents:
    """A document begins where the position is not above the one before, and after `longest` tokens of one.

    Padding, `positions [batch, tokens]` of `PADDING`, is looked past.
    """
    there = positions != PADDING
    order = torch.arange(positions.shape[1], device=positions.device)
    last = torch.where(there, order, -1).cummax(dim=1).values  # where the last token is, up to here
    earlier = torch.nn.functional.pad(last[:, :-1], (1, 0), value=-1)
    before = torch.where(earlier >= 0, positions.gather(1, earlier.clamp_min(0)), PADDING)
    restart = there & ((earlier < 0) | (positions <= before))
    rank = there.cumsum(dim=1) - 1
    since = rank - torch.where(restart, rank, 0).cummax(dim=1).values
    begins = there & (since % longest == 0)
    first = torch.where(begins, order, 0).cummax(dim=1).values
    number = torch.where(there, begins.cumsum(dim=1) - 1, -1)
    return Documents(number, since % longest, positions - positions.gather(1, first), number.amax(dim=1) + 1)


def all_but_last(documents: Documents) -> Blocks:
    """The documents that another one follows, row after row."""
    chosen = (documents.number < documents.counts[:, None] - 1) & (documents.number >= 0)
    return _blocks(documents, chosen, documents.counts - 1)


def last_of_each(documents: Documents, among: Tensor | None = None) -> Blocks:
    """The last document of each row that has any; only its tokens in `among [batch, tokens]`, if given.

    Rows that have no such token are left out.
    """
    chosen = (documents.number == documents.counts[:, None] - 1) & (documents.number >= 0)
    if among is not None:
        chosen = chosen & among
    slot = chosen.cumsum(dim=1) - 1
    cut = Documents(torch.zeros_like(slot), slot, documents.local, documents.counts)
    return _blocks(cut, chosen, chosen.any(dim=1).long())


def in_order(shape: torch.Size, opened: int, *parts: tuple[Blocks, Tensor]) -> Tensor:
    """Rows of blocks put where their tokens are: [batch, tokens, features], zero where there is none.

    `shape` is [batch, opened + tokens]; the first `opened` are left out.
    """
    states = [mixed.flatten(0, 1) for _, mixed in parts]
    states.append(states[0].new_zeros(1, states[-1].shape[1]))
    total = sum(len(part) for part in states) - 1
    source = torch.full((shape.numel(),), total, device=states[0].device)
    start = 0
    for blocks, mixed in parts:
        slot = torch.arange(start, start + blocks.there.numel(), device=source.device).view_as(blocks.there)
        source[blocks.token[blocks.there]] = slot[blocks.there]
        start += mixed.shape[0] * mixed.shape[1]
    kept = source.view(shape)[:, opened:]
    return torch.unflatten(torch.cat(states).index_select(0, kept.flatten()), 0, kept.shape)


def _blocks(documents: Documents, chosen: Tensor, counts: Tensor) -> Blocks:
    """`chosen [batch, tokens]` are all tokens of the first `counts [batch]` documents of each row."""
    counts = counts.clamp_min(0)
    total = int(counts.sum())
    rows = torch.repeat_interleave(counts, output_size=total)
    begin = counts.cumsum(0) - counts  # [batch]: the first block of each row
    token = chosen.flatten().nonzero()[:, 0]
    slot = documents.slot.flatten()[token]
    block = (documents.number + begin[:, None]).flatten()[token]
    slots = int(slot.max()) + 1 if len(token) else 0
    index = token.new_full((total * slots,), -1).scatter(0, block * slots + slot, token).view(total, slots)
    there = index >= 0
    return Blocks(torch.where(there, index, index[:, :1]), there, rows)
