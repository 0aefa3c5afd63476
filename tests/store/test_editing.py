"""Editing: the old words are gone from every byte; a crash leaves the old or the new, never both or none."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.store.test_forensics import CANARIES, holding, plant

from mnemos.errors import InvalidTextError, NotFoundError, StalePlanError, UsageError
from mnemos.store.erasing import STEPS
from mnemos.store.receipts import verify_receipt
from mnemos.store.records import MemoryDraft, MemoryRecord, Selector, TraceDraft
from mnemos.store.store import Store

KilledAtEachPoint = Callable[[Callable[[], Callable[[], object]], Callable[[int], None]], int]


def edit(store: Store, namespace: str, memory_id: str, words: str, **more: Any) -> tuple[Any, dict[str, Any]]:
    return store.edit(store.plan_erase(Selector(namespace, ids=[memory_id])), words, **more)


def test_an_edit_keeps_all_but_words_reply_and_trace(either_store: Store) -> None:
    store = either_store
    session = store.create_session("a", "plans")
    draft = MemoryDraft(
        "Clara lives in Leeds",
        title="Family",
        source="/notes.md",
        speaker="User",
        tags=["family", "places"],
        session_id=session.id,
        created_at=datetime(2025, 3, 1, tzinfo=UTC),
        expires_at=datetime(2999, 1, 1, tzinfo=UTC),
        content_key=b"clara",
    )
    old = store.add("a", [draft])[0]
    store.add("a", [MemoryDraft("after it")])
    store.set_flags("a", old.id, pinned=True, hidden=True)
    store.put_traces("a", [TraceDraft(old.id, "m", 3, b"kv", b"route")])
    old = store.get("a", old.id)
    told: list[str] = []
    new, receipt = edit(store, "a", old.id[:8], "Clara lives in York", on_step=told.append)
    assert sorted(told) == sorted(STEPS)
    changed = {"id", "text", "text_bytes", "tokens", "trace_bytes", "kv_bytes", "trace_fingerprint"}
    for name in set(MemoryRecord.__slots__) - changed:
        assert getattr(new, name) == getattr(old, name), name
    assert (new.text, new.reply, new.trace_fingerprint) == ("Clara lives in York", None, None)
    assert new.id != old.id and new.text_bytes == len("Clara lives in York")
    assert ("a", new.id) in store.pending_traces("a", "m")
    with pytest.raises(NotFoundError):
        store.get("a", old.id)
    store.set_flags("a", new.id, hidden=False)
    assert store.lexical("a", "Leeds", 3) == [] and store.lexical("a", "York", 3)[0][0] == new.id
    assert verify_receipt(receipt) and receipt == store.receipts()[-1]
    assert receipt["rewritten"] == {old.id: new.id} and receipt["edited"] == [old.id]
    assert receipt["erased"] == [] and "York" not in str(receipt) and "Leeds" not in str(receipt)
    assert store.get_session("a", session.id).title == "plans"
    assert [line["action"] for line in store.audit()] == ["edit", "erased"]
    assert store.add("a", [draft])[0].id not in (old.id, new.id)
    assert store.verify(deep=True).ok


def test_an_edit_takes_replies_that_were_made_with_it(store: Store, fill: Any) -> None:
    family = fill(store)
    new, receipt = edit(store, "alice", family.fact, "My sister Clara is a pilot.")
    assert set(receipt["rewritten"]) == {family.fact, family.reply}
    kept = store.get("alice", receipt["rewritten"][family.reply])
    assert (kept.text, kept.reply) == ("What does she do?", None)
    again, _ = edit(store, "alice", kept.id, "What does Clara do?")
    assert (again.text, again.ordinal) == ("What does Clara do?", kept.ordinal)
    assert {record.text for record in store.list("alice")} == {
        "My sister Clara is a pilot.",
        "The boat is painted green.",
        "What does Clara do?",
    }
    assert store.get("alice", new.id).text == "My sister Clara is a pilot."
    assert store.verify(deep=True).ok


def test_without_cascade_replies_stay_at_an_edit(store: Store, fill: Any) -> None:
    family = fill(store)
    plan = store.plan_erase(Selector("alice", ids=[family.fact]), "none")
    store.edit(plan, "My sister Clara is a pilot.")
    assert store.get("alice", family.reply).reply == "Clara is a nurse."
    assert store.uses_of("alice", family.reply) == [] and store.verify(deep=True).ok


def test_what_can_not_be_edited(store: Store, fill: Any) -> None:
    family = fill(store)
    open_one = store.add("alice", [MemoryDraft("and?", kind="exchange", status="open")])[0]
    before = store.list("alice", include_hidden=True)
    for words in ("", " \n", "x" * (2 << 20), "\ud800", "My sister Clara works as a nurse."):
        with pytest.raises(InvalidTextError):
            edit(store, "alice", family.fact, words)
    with pytest.raises(UsageError, match="reply"):
        edit(store, "alice", open_one.id, "and now?")
    for selector in (Selector("alice", everything=True), Selector("alice", matching="e")):
        with pytest.raises(UsageError, match="one memory"):
            store.edit(store.plan_erase(selector), "words")
    plan = store.plan_erase(Selector("alice", ids=[family.fact]))
    edit(store, "alice", family.other, "The boat is painted blue.")
    store.edit(plan, "My sister Clara is a pilot.")
    with pytest.raises(StalePlanError):
        store.edit(plan, "My sister Clara is a doctor.")
    plan = store.plan_erase(Selector("alice", ids=[open_one.id]))
    store.complete("alice", open_one.id, "so")
    with pytest.raises(StalePlanError):
        store.edit(plan, "and now?")
    assert len(store.list("alice", include_hidden=True)) == len(before)
    assert store.verify(deep=True).ok


@pytest.mark.parametrize("encrypted", [True, False], ids=["encrypted", "plain"])
def test_no_canary_survives_an_edit(bank: Path, encrypted: bool) -> None:
    """Title, tags, source and speaker stay by design; the words, the reply and all that came of them go."""
    gone = [CANARIES[name] for name in ("text", "reply", "expanded", "derived", "trace")]
    with Store.open(bank, encrypted=encrypted) as store:
        plant(store, "alice")
        (planted,) = store.list("alice", matching=CANARIES["text"])
        new, receipt = edit(store, "alice", planted.id, "it is canarynewword")
        assert len(receipt["rewritten"]) == 2
        for word in gone:
            assert holding(bank, word) == [], word
        assert bool(holding(bank, "canarynewword")) != encrypted
        assert store.lexical("alice", "canarynewword", 3)[0][0] == new.id
        assert store.verify(deep=True).ok
    for word in gone:
        assert holding(bank, word) == [], word
    with Store.open(bank) as store:
        edit(store, "alice", new.id, "it is something else")
        assert holding(bank, "canarynewword") == []


def test_an_edit_killed_at_each_point_leaves_the_old_or_the_new(
    fast_disk: Path, fill: Any, killed_at_each_point: KilledAtEachPoint
) -> None:
    bank = fast_disk / "bank"
    with Store.open(bank) as store:
        family = fill(store)
        edit(store, "alice", family.fact, "qxcanary0 in the words")
    known = [0]  # which words the memory has
    attempts = [0]

    def prepare() -> Callable[[], object]:
        store = Store.open(bank)
        (fact,) = store.list("alice", matching="qxcanary")
        plan = store.plan_erase(Selector("alice", ids=[fact.id]))
        return lambda: store.edit(plan, f"qxcanary{attempts[0]} in the words")

    attempts[0] = 1

    def check(point: int) -> None:
        with Store.open(bank) as store:
            report = store.verify(deep=True)
            assert report.ok, (point, report.problems)
            assert store.count("alice") == 3
            (fact,) = store.list("alice", matching="qxcanary")
            now = int(fact.text.removeprefix("qxcanary").split()[0])
            assert now in (known[0], attempts[0])
            gone = attempts[0] if now == known[0] else known[0]
            assert [hit[0] for hit in store.lexical("alice", f"qxcanary{now}", 9)] == [fact.id]
            assert store.lexical("alice", f"qxcanary{gone}", 9) == []
            assert holding(bank, f"qxcanary{gone} ") == [], point
            assert len(store.receipts()) == before[0] + (now == attempts[0])
            before[0] = len(store.receipts())
        known[0] = now
        attempts[0] += 1

    before = [1]
    assert killed_at_each_point(prepare, check) >= 15
    assert known[0] > 5 and known[0] < attempts[0]
