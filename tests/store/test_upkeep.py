import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlcipher3.dbapi2
from sqlalchemy import text

from mnemos.errors import BankReadOnlyError
from mnemos.store import lookups
from mnemos.store.receipts import verify_receipt
from mnemos.store.records import MemoryDraft, Selector, TraceDraft, UseRecord
from mnemos.store.store import Store

HOUR = timedelta(hours=1)


def ask(store: Store, namespace: str, words: str, ago_s: float = 0) -> str:
    """An open exchange that was begun so long ago; its id."""
    began = datetime.now(UTC) - timedelta(seconds=ago_s)
    draft = MemoryDraft(words, kind="exchange", status="open", created_at=began)
    return store.add(namespace, [draft])[0].id


def set_clock(monkeypatch: pytest.MonkeyPatch, moment: datetime) -> None:
    nanoseconds = int(moment.timestamp()) * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: nanoseconds)


def test_abandoned_exchanges_are_those_open_for_long(either_store: Store) -> None:
    store = either_store
    assert store.abandoned(0) == []
    old = ask(store, "alice", "what was it?", ago_s=600)
    fresh = ask(store, "alice", "and now?", ago_s=10)
    other = ask(store, "bob/notes", "hm?", ago_s=700)
    done = ask(store, "alice", "answered?", ago_s=900)
    store.complete("alice", done, "yes")
    store.add("alice", [MemoryDraft("a note", created_at=datetime(2020, 1, 1, tzinfo=UTC))])
    assert sorted(store.abandoned(60)) == sorted([("alice", old), ("bob/notes", other)])
    assert {memory_id for _, memory_id in store.abandoned(1)} == {old, fresh, other}
    assert store.abandoned(3600) == []
    store.erase(store.plan_erase(Selector("alice", ids=[old])))
    assert store.abandoned(60) == [("bob/notes", other)]
    store.erase(store.plan_erase(Selector("bob/notes", everything=True)))
    assert store.abandoned(60) == []


def test_one_that_an_erase_is_at_is_not_abandoned(store: Store) -> None:
    ask(store, "a", "to be erased", ago_s=600)
    with store._core.get("a").database.write() as connection:
        connection.execute(text("UPDATE memory SET erased = 1"))
    assert store.abandoned(60) == []


def test_an_abandoned_exchange_is_finished_without_a_reply(bank: Path) -> None:
    with Store.open(bank) as store:
        memory_id = ask(store, "a", "the boat is called Sirius", ago_s=600)
        assert store.pending_traces(None, "m") == []
        assert store.abandoned(60) == [("a", memory_id)]
        record = store.complete("a", memory_id, "", "interrupted", [])
        assert (record.reply, record.status) == (None, "interrupted")
        assert record.text == "the boat is called Sirius"
        assert store.abandoned(0) == [] and store.pending_traces(None, "m") == [("a", memory_id)]
        store.put_traces("a", [TraceDraft(memory_id, "m", 5, b"kv", b"route")])
    with Store.open(bank) as store:
        assert store.get("a", memory_id).status == "interrupted" and store.abandoned(0) == []
        assert [hit[0] for hit in store.lexical("a", "Sirius", 3)] == [memory_id]
        assert store.uses_of("a", memory_id) == [] and store.verify(deep=True).ok


def test_the_open_ones_have_an_index(store: Store) -> None:
    ask(store, "a", "first")
    seen: list[str] = []
    database = store._core.catalog
    found = lookups.open_memories(database)
    with database.read() as connection:
        query = "EXPLAIN QUERY PLAN SELECT namespace_id, id FROM memories WHERE memories.is_open = 1"
        seen += [row[3] for row in connection.execute(text(query))]
    assert len(found) == 1 and any("memories_open" in line for line in seen), seen


def holding(bank: Path, word: str) -> list[str]:
    return [str(path) for path in bank.rglob("*") if path.is_file() and word.encode() in path.read_bytes()]


def test_what_has_expired_is_swept_out_of_every_file(bank: Path) -> None:
    now = datetime.now(UTC)
    with Store.open(bank, encrypted=False) as store:
        gone, stays = store.add(
            "alice",
            [
                MemoryDraft("qxcanaryone", expires_at=now - HOUR),
                MemoryDraft("qxcanarytwo", expires_at=now + HOUR),
            ],
        )
        store.add("bob", [MemoryDraft("qxcanarythree", expires_at=now - HOUR)])
        store.add("carol", [MemoryDraft("qxcanaryfour")])
        asked = ask(store, "alice", "which one?")
        store.complete("alice", asked, "qxcanaryreply", uses=[UseRecord(gone.id, 0, 1.0)])
        assert holding(bank, "qxcanaryone") and holding(bank, "qxcanaryreply")
        made = store.sweep_expired()
        assert len(made) == 2 and all(verify_receipt(receipt) for receipt in made)
        assert made == store.receipts() and made[0]["erased"] == [gone.id]
        assert list(made[0]["rewritten"]) == [asked]
        for word in ("qxcanaryone", "qxcanarythree", "qxcanaryreply"):
            assert holding(bank, word) == [], word
        for word in ("qxcanarytwo", "qxcanaryfour"):
            assert holding(bank, word), word
        assert store.get("alice", stays.id).text == "qxcanarytwo"
        assert store.sweep_expired() == [] and store.namespaces() == ["alice", "bob", "carol"]
        assert store.verify(deep=True).ok


def test_the_clock_decides_and_may_go_backwards(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    noon = datetime(2030, 1, 1, 12, tzinfo=UTC)
    set_clock(monkeypatch, noon)
    early, late = store.add(
        "a", [MemoryDraft("soon", expires_at=noon + HOUR), MemoryDraft("later", expires_at=noon + 3 * HOUR)]
    )
    begun = store.add("a", [MemoryDraft("open?", kind="exchange", status="open")])[0].id
    for moment in (noon, noon - 24 * HOUR, noon + HOUR - timedelta(seconds=1)):
        set_clock(monkeypatch, moment)
        assert store.sweep_expired() == [] and store.count("a") == 3
    set_clock(monkeypatch, noon + 2 * HOUR)
    (receipt,) = store.sweep_expired()
    assert receipt["erased"] == [early.id]
    set_clock(monkeypatch, noon - 24 * HOUR)
    assert store.sweep_expired() == [] and store.get("a", late.id).text == "later"
    assert store.abandoned(60) == []
    set_clock(monkeypatch, noon + HOUR)
    assert store.abandoned(60) == [("a", begun)]
    assert store.verify(deep=True).ok


def test_a_reader_holds_one_sweep_up_and_not_the_others(bank: Path) -> None:
    past = datetime(2020, 1, 1, tzinfo=UTC)
    with Store.open(bank, encrypted=False) as store:
        store.add("a", [MemoryDraft("qxcanaryone", expires_at=past)])
        path = next((bank / "namespaces").glob("*.db"))
        store.add("b", [MemoryDraft("qxcanarytwo", expires_at=past)])
        reader = sqlcipher3.dbapi2.connect(str(path), isolation_level=None)
        try:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM memory").fetchone()
            assert len(store.sweep_expired()) == 1 and store.count("a") == 0
            reader.execute("COMMIT")
        finally:
            reader.close()
        assert store.sweep_expired() == [] and len(store.resume()) == 1
        assert holding(bank, "qxcanary") == []


def test_a_read_only_bank_is_not_swept(bank: Path) -> None:
    with Store.open(bank) as store:
        store.add("a", [MemoryDraft("old", expires_at=datetime(2020, 1, 1, tzinfo=UTC))])
    with Store.open(bank, read_only=True) as store:
        assert store.abandoned(0) == []
        with pytest.raises(BankReadOnlyError):
            store.sweep_expired()
