"""Sequences cut into documents and laid out in blocks."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mnemos.attention.patterns.documents import (
    Blocks,
    all_but_last,
    find_documents,
    in_order,
    last_of_each,
)
from mnemos.attention.patterns.mixer import PADDING
from mnemos.attention.patterns.naive.msa import cut

_ROWS = st.integers(1, 12).flatmap(
    lambda tokens: st.lists(
        st.lists(st.sampled_from([PADDING, 0, 1, 2, 3, 7]), min_size=tokens, max_size=tokens),
        min_size=1,
        max_size=3,
    )
)


def _plain(rows: list[list[int]], longest: int) -> list[list[list[int]]]:
    """The tokens of each document of each row, in the flat order of the batch."""
    width = len(rows[0])
    return [
        [[row * width + token for token in document] for document in cut(places, longest)]
        for row, places in enumerate(rows)
    ]


def _held(blocks: Blocks) -> list[list[int]]:
    return [token[there].tolist() for token, there in zip(blocks.token, blocks.there, strict=True)]


@settings(max_examples=150, deadline=None)
@given(rows=_ROWS, longest=st.integers(1, 5))
def test_documents_are_those_of_a_walk_through_the_positions(rows: list[list[int]], longest: int) -> None:
    positions, plain = torch.tensor(rows), _plain(rows, longest)
    documents = find_documents(positions, longest)
    closed, last = all_but_last(documents), last_of_each(documents)
    assert documents.counts.tolist() == [len(row) for row in plain]
    assert _held(closed) == [document for row in plain for document in row[:-1]]
    assert _held(last) == [row[-1] for row in plain if row]
    assert last.rows.tolist() == [number for number, row in enumerate(plain) if row]
    for document in (document for row in plain for document in row):
        places = positions.flatten()[document]
        assert documents.local.flatten()[document].tolist() == (places - places[0]).tolist()
        assert documents.slot.flatten()[document].tolist() == list(range(len(document)))


@settings(max_examples=100, deadline=None)
@given(rows=_ROWS, longest=st.integers(1, 5), opened=st.integers(0, 3))
def test_blocks_put_back_in_order_are_the_tokens(rows: list[list[int]], longest: int, opened: int) -> None:
    positions = torch.tensor(rows)
    opened = min(opened, positions.shape[1] - 1)
    documents = find_documents(positions, longest)
    new = torch.arange(positions.shape[1]) >= opened
    closed, last = all_but_last(documents), last_of_each(documents, new)
    states = torch.arange(1.0, positions.numel() + 1)[:, None]

    def kept(blocks: Blocks) -> Tensor:
        return blocks.gather(states).masked_fill(~blocks.there[..., None], torch.nan)

    back = in_order(positions.shape, opened, (closed, kept(closed)), (last, kept(last)))
    expected = states.view(*positions.shape, 1).masked_fill((positions == PADDING)[..., None], 0.0)
    assert torch.equal(back, expected[:, opened:])
