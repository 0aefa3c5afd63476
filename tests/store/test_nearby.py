"""Places of memories among those that can be seen."""

from datetime import UTC, datetime, timedelta

from mnemos.store.records import MemoryDraft, Selector
from mnemos.store.store import Store


def beside(store: Store, ids: list[str]) -> dict[str, tuple[str | None, str | None, str | None]]:
    return {place.id: (place.speaker, place.before, place.after) for place in store.places("a", ids)}


def test_neighbours_are_those_that_can_be_seen(store: Store) -> None:
    past = datetime.now(UTC) - timedelta(days=1)
    drafts = [MemoryDraft(name, speaker=name) for name in ("one", "two", "three")]
    drafts += [MemoryDraft("over", expires_at=past), MemoryDraft("four")]
    one, two, three, over, four = (record.id for record in store.add("a", drafts))
    assert beside(store, [two, one]) == {one: ("one", None, two), two: ("two", one, three)}
    assert beside(store, [three])[three] == ("three", two, four)
    assert beside(store, [four])[four] == (None, three, None)
    store.set_flags("a", two, hidden=True)
    assert beside(store, [three])[three] == ("three", one, four)
    store.set_flags("a", two, hidden=False)
    assert beside(store, [three])[three] == ("three", two, four)
    assert over not in {each for place in beside(store, [one, two, three, four]).values() for each in place}


def test_an_erased_memory_leaves_no_gap(store: Store) -> None:
    one, two, three = (r.id for r in store.add("a", [MemoryDraft(t) for t in ("one", "two", "three")]))
    store.erase(store.plan_erase(Selector("a", ids=[two])))
    assert beside(store, [one, two, three]) == {one: (None, None, three), three: (None, one, None)}


def test_nothing_of_another_namespace(store: Store) -> None:
    (alone,) = (record.id for record in store.add("a", [MemoryDraft("alone")]))
    other = store.add("b", [MemoryDraft("other")])[0].id
    assert beside(store, [alone, other]) == {alone: (None, None, None)}
    assert store.places("never", [alone]) == [] and store.places("a", []) == []
