"""Pairs of neighbouring words: counted where they stand beside each other, by how rare they are."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnemos.store.phrases import NOTHING, pairs_of
from mnemos.store.records import MemoryDraft
from mnemos.store.store import Store

TEXTS = [
    "The secret of the copper market is 17.",
    "Copper is dear, and the market is shut.",
    "A market of copper.",
    "The green van.",
    *(
        f"Filler of the {word} kind, with some more words."
        for word in ["one", "two", "three", "four", "five"]
    ),
]


@pytest.fixture
def held(tmp_path: Path) -> tuple[Store, list[str]]:
    store = Store.open(tmp_path / "bank")
    return store, [each.id for each in store.add("default", [MemoryDraft(text) for text in TEXTS])]


def test_words_beside_each_other_count_and_apart_they_do_not(held: tuple[Store, list[str]]) -> None:
    store, ids = held
    with store:
        found = store.phrases("default", "Where are the copper markets and the green vans?").telling
        assert set(found) == {ids[0], ids[3]}, "stemmed as the words are"
        assert 0 < found[ids[0]] < found[ids[3]] <= 1, "copper and market are found elsewhere too"
        assert store.phrases("default", "market copper") == NOTHING, "the other way round is another pair"
        assert store.phrases("default", "the of and") == NOTHING == store.phrases("default", "copper")
        assert store.phrases("nowhere", "copper market") == NOTHING


def test_a_pair_of_many_memories_tells_nothing(tmp_path: Path) -> None:
    with Store.open(tmp_path / "bank") as store:
        store.add("default", [MemoryDraft(f"Good morning number {each}.") for each in range(70)])
        one = store.add("default", [MemoryDraft("Good grief.")])[0]
        assert set(store.phrases("default", "good morning, good grief").telling) == {one.id}


@given(st.text(max_size=200))
def test_pairs_of_any_text(query: str) -> None:
    pairs = pairs_of(query)
    assert len(pairs) <= 16 and len(set(pairs)) == len(pairs)
    for first, second in pairs:
        assert first.isprintable() and '"' not in first + second
