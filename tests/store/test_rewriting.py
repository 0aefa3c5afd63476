"""Copies of rows that a database left where the rows were moved from: cleared later where that takes long."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from mnemos.store import rewriting
from mnemos.store.records import MemoryDraft, Selector
from mnemos.store.store import Store


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every namespace database counts as large."""
    monkeypatch.setattr(rewriting, "AT_ONCE_BYTES", 0)


def moved_about(store: Store) -> list[str]:
    """Erases memories whose rows were moved between pages; the words that are to be gone."""
    chance = random.Random(3)
    drafts = [
        MemoryDraft(
            f"canary{index:03d}x " + "fill " * chance.choice((2, 20, 60)), kind="exchange", status="open"
        )
        for index in range(60)
    ]
    ids = [record.id for record in store.add("a", drafts)]
    for memory_id in chance.sample(ids, 30):
        store.complete("a", memory_id, "reply " * chance.choice((10, 80)))
    order = chance.sample(range(60), 40)
    receipts = [store.erase(store.plan_erase(Selector("a", ids=[ids[number]]))) for number in order]
    assert {receipt["page_copies"] for receipt in receipts} == {"due"}
    return [f"canary{number:03d}x" for number in order]


def held(bank: Path, needles: list[str]) -> list[str]:
    everything = b"\0".join(path.read_bytes() for path in bank.rglob("*") if path.is_file())
    return [needle for needle in needles if needle.encode() in everything]


@pytest.mark.usefixtures("large")
def test_copies_go_when_the_bank_is_closed(bank: Path) -> None:
    store = Store.open(bank, encrypted=False)
    gone = moved_about(store)
    assert held(bank, gone), "without copies this test shows nothing"
    assert rewriting.due(store._core)
    store.close()
    assert held(bank, gone) == []
    with Store.open(bank) as store:
        assert rewriting.due(store._core) == [] and store.count("a") == 20 and store.verify(deep=True).ok


@pytest.mark.usefixtures("large")
def test_a_bank_that_was_not_closed_clears_them_when_opened(
    bank: Path, in_child: Callable[[Callable[[], object]], int]
) -> None:
    def work() -> None:
        moved_about(Store.open(bank, encrypted=False))

    assert in_child(work) == 0
    gone = [f"canary{number:03d}x" for number in range(60)]
    before = held(bank, gone)
    with Store.open(bank) as store:
        assert rewriting.due(store._core) == []
        left = {record.text.split()[0] for record in store.list("a")}
        assert set(held(bank, gone)) == left and len(before) > len(left)


@pytest.mark.usefixtures("large")
def test_a_large_one_waits_for_compaction(bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewriting, "AT_CLOSE_BYTES", 0)
    monkeypatch.setattr(rewriting, "AT_OPEN_BYTES", 0)
    with Store.open(bank, encrypted=False) as store:
        gone = moved_about(store)
    with Store.open(bank) as store:
        assert rewriting.due(store._core) and held(bank, gone)
        store.compact()
        assert rewriting.due(store._core) == [] and held(bank, gone) == []


@pytest.mark.usefixtures("large")
def test_a_reader_in_the_way_leaves_it_due(bank: Path) -> None:
    with Store.open(bank, encrypted=False) as store:
        moved_about(store)
        with Store.open(bank, read_only=True) as reader:
            namespace = reader._core.find("a")
            assert namespace is not None
            with namespace.database.read() as connection:
                connection.exec_driver_sql("SELECT count(*) FROM memory").scalar_one()
                assert rewriting.rewrite_due(store._core) == 0
        assert rewriting.due(store._core)
        assert rewriting.rewrite_due(store._core) == 1


def test_a_small_one_is_written_anew_at_once(store: Store) -> None:
    (memory,) = store.add("a", [MemoryDraft("one")])
    receipt = store.erase(store.plan_erase(Selector("a", ids=[memory.id])))
    assert receipt["page_copies"] == "cleared" and rewriting.due(store._core) == []
