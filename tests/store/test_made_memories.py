"""Memories that were made from others: they are written with what they were made from, and go with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mnemos.errors import NotFoundError
from mnemos.store.records import MemoryDraft, MemoryRecord, Selector, UseRecord
from mnemos.store.store import Store

NAME = "alice"


def uses(*memories: MemoryRecord) -> tuple[UseRecord, ...]:
    return tuple(UseRecord(memory.id, 1, 1.0, {"tool": 1.0}) for memory in memories)


def add(store: Store, text: str, **fields: Any) -> MemoryRecord:
    return store.add(NAME, [MemoryDraft(text=text, **fields)])[0]


def chain(store: Store) -> dict[str, MemoryRecord]:
    """A fact, an exchange that read it, what a tool returned in it, a note made from that, another."""
    fact = add(store, "Clara is a nurse.")
    asked = add(store, "Where does she work?", kind="exchange", status="open")
    result = add(store, "look_up() returned: Leeds", kind="tool", uses=uses(fact, asked))
    asked = store.complete(NAME, asked.id, "In Leeds.", "complete", uses(fact, result))
    note = add(store, "Clara works in Leeds.", uses=uses(asked, result))
    return {"fact": fact, "asked": asked, "result": result, "note": note, "other": add(store, "It rains.")}


def left(store: Store) -> list[tuple[str, str | None]]:
    return [(memory.text, memory.reply) for memory in store.list(NAME, newest_first=False)]


@pytest.mark.parametrize(
    ("forgotten", "rest"),
    [
        ("fact", ["Where does she work?", "It rains."]),
        ("result", ["Clara is a nurse.", "Where does she work?", "It rains."]),
        ("asked", ["Clara is a nurse.", "It rains."]),
        ("other", None),
    ],
)
def test_what_was_made_goes_whole_and_the_users_words_stay(
    either_store: Store, forgotten: str, rest: list[str] | None
) -> None:
    store = either_store
    made = chain(store)
    plan = store.plan_erase(Selector(NAME, ids=[made[forgotten].id]))
    receipt = store.erase(plan)
    if rest is None:
        assert len(left(store)) == 4
        assert not receipt["rewritten"]
    else:
        assert left(store) == [(text, None) for text in rest]
        assert {made["result"].id, made["note"].id} <= set(receipt["erased"])
        assert made["note"].id not in receipt["rewritten"]
    assert store.verify(deep=True).ok


def test_a_note_alone_takes_nothing_with_it(store: Store) -> None:
    made = chain(store)
    store.erase(store.plan_erase(Selector(NAME, ids=[made["note"].id])))
    assert ("Where does she work?", "In Leeds.") in left(store)


def test_without_cascade_it_stays(store: Store) -> None:
    made = chain(store)
    store.erase(store.plan_erase(Selector(NAME, ids=[made["fact"].id]), "none"))
    assert ("look_up() returned: Leeds", None) in left(store)


def test_nothing_is_made_from_what_is_gone_or_from_elsewhere(store: Store) -> None:
    gone = add(store, "Clara is a nurse.")
    (elsewhere,) = store.add("bob", [MemoryDraft(text="Bob's.")])
    store.erase(store.plan_erase(Selector(NAME, ids=[gone.id])))
    for memory in (gone, elsewhere):
        with pytest.raises(NotFoundError):
            add(store, "made", uses=uses(memory))
    assert left(store) == []


def test_what_it_was_made_from_survives_a_rebuild(store: Store, bank: Path) -> None:
    made = chain(store)
    assert [use.memory_id for use in store.uses_of(NAME, made["result"].id)] == sorted(
        [made["fact"].id, made["asked"].id]
    )
    store.close()
    for path in (bank / "namespaces").iterdir():
        path.unlink()
    with Store.open(bank) as again:
        again.repair()
        plan = again.plan_erase(Selector(NAME, ids=[made["fact"].id]))
        assert {made["result"].id, made["note"].id} <= {record.id for record in plan.dependants}


def test_a_write_of_it_killed_at_each_point_leaves_all_or_nothing(
    bank: Path, killed_at_each_point: Callable[..., int]
) -> None:
    def prepare() -> Callable[[], object]:
        store = Store.open(bank)
        fact = add(store, "Clara is a nurse.")
        return lambda: add(store, "Clara works in Leeds.", uses=uses(fact))

    def check(point: int) -> None:
        with Store.open(bank) as store:
            memories = store.list(NAME)
            facts = [memory.id for memory in memories if memory.text == "Clara is a nurse."]
            assert len(facts) == point
            plan = store.plan_erase(Selector(NAME, ids=facts))
            assert len(plan.dependants) == len(memories) - len(facts), "no note without what it was made from"
            assert store.verify(deep=True).ok

    assert killed_at_each_point(prepare, check) > 2
