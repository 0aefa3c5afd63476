"""What a router looks at, against the plain calls that say the same one by one."""

import random
from datetime import UTC, datetime

import pytest

from mnemos.store.records import MemoryDraft, Selector
from mnemos.store.selectors import Source
from mnemos.store.store import Store

WORDS = ["boat", "garden", "nurse", "river", "clara", "market", "window"]


def fill(store: Store, count: int = 40) -> list[str]:
    chance = random.Random(3)
    drafts = [
        MemoryDraft(
            " ".join(chance.choices(WORDS, k=4)),
            speaker=chance.choice(["User", "Clara", None]),
            source=chance.choice(["a.md", None]),
        )
        for _ in range(count)
    ]
    ids = [record.id for record in store.add("a", drafts)]
    for index in (3, 17, 18, 19):
        store.set_flags("a", ids[index], hidden=True)
    store.set_expiry("a", ids[25], datetime(2020, 1, 1, tzinfo=UTC))
    store.erase(store.plan_erase(Selector("a", ids=[ids[8], ids[30]])))
    return ids


def test_they_are_those_of_the_single_calls(store: Store) -> None:
    fill(store)
    found = store.candidates("a", "boat market", by_words=6, recent=5, beside=3)
    lexical = dict(store.lexical("a", "boat market", 6))
    assert found.lexical == lexical and list(found.lexical) == list(lexical)
    near = [
        each
        for place in store.places("a", list(lexical)[:3])
        for each in (place.before, place.after)
        if each is not None
    ]
    assert set(found.places) == {*lexical, *store.recent_ids("a", 5), *near}


@pytest.mark.parametrize("recent", [5, 40])
def test_neighbours_skip_what_can_not_be_seen(store: Store, recent: int) -> None:
    fill(store)
    found = store.candidates("a", "boat", by_words=4, recent=recent, beside=2)
    for place in store.places("a", list(found.places)):
        here = found.places[place.id]
        assert here.speaker == place.speaker
        assert here.before == (place.before if place.before in found.places else None)
        assert here.after == (place.after if place.after in found.places else None)


def test_a_condition_holds_for_all_of_them(store: Store) -> None:
    fill(store)
    chosen = Source("a.md")
    found = store.candidates("a", "boat", by_words=9, recent=9, beside=9, where=chosen)
    assert found.places
    assert {store.get("a", each).source for each in found.places} == {"a.md"}


def test_others_can_be_named_and_without_a_query_words_do_not_count(store: Store) -> None:
    ids = fill(store)
    found = store.candidates("a", None, by_words=9, recent=2, beside=9, more=[ids[0], ids[3], ids[8]])
    assert found.lexical == {}
    assert list(found.places) == [*store.recent_ids("a", 2), ids[0]]  # the others are hidden, or gone
    assert store.candidates("none", "boat", by_words=9, recent=2, beside=9).places == {}


def test_hidden_hits_make_room_for_others(store: Store) -> None:
    ids = [record.id for record in store.add("a", [MemoryDraft(f"boat {n}") for n in range(12)])]
    for each in ids[:9]:
        store.set_flags("a", each, hidden=True)
    assert {found[0] for found in store.lexical("a", "boat", 3)} == set(ids[9:])
    assert len(store.lexical("a", "boat", 2)) == 2
