import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlcipher3.dbapi2

from mnemos.errors import (
    ErasePendingError,
    InvalidSelectorError,
    NotFoundError,
    StalePlanError,
)
from mnemos.store.erasing import STEPS
from mnemos.store.receipts import verify_receipt
from mnemos.store.records import MemoryDraft, Selector, UseRecord
from mnemos.store.store import Store


def test_closure_takes_the_reply_and_keeps_the_users_own_words(either_store: Store, fill: Any) -> None:
    store = either_store
    family = fill(store)
    before = store.get("alice", family.reply)
    plan = store.plan_erase(Selector("alice", ids=[family.fact[:10]]))
    assert [record.id for record in plan.selected] == [family.fact]
    assert [record.id for record in plan.dependants] == [family.reply]
    assert plan.bytes_on_disk > 2 * 100
    epoch = store.erase_epoch()
    told: list[str] = []
    receipt = store.erase(plan, on_step=told.append)
    assert sorted(told) == sorted(STEPS) and store.erase_epoch() == epoch + 1
    new_id = receipt["rewritten"][family.reply]
    kept = store.get("alice", new_id)
    assert (kept.text, kept.reply, kept.status, kept.trace_fingerprint) == (
        before.text,
        None,
        "complete",
        None,
    )
    assert (kept.ordinal, kept.session_id, kept.created_at) == (
        before.ordinal,
        before.session_id,
        before.created_at,
    )
    assert store.pending_traces("alice", "model-a") == [("alice", new_id)]
    for gone in (family.fact, family.reply):
        for call in (store.get, store.get_kv, store.get_route, store.uses_of, store.used_in):
            with pytest.raises(NotFoundError):
                call("alice", gone)
    assert store.lexical("alice", "Clara nurse", 9) == [] and store.uses_of("alice", new_id) == []
    assert {record.id for record in store.list("alice", include_hidden=True)} == {family.other, new_id}
    assert store.verify(deep=True).ok


def test_closure_is_closed_over_replies_of_replies(store: Store) -> None:
    fact = store.add("a", [MemoryDraft("seed")])[0].id
    chain = [fact]
    for index in range(4):
        draft = MemoryDraft(f"q{index}", kind="exchange", status="open")
        asked = store.add("a", [draft])[0].id
        store.complete("a", asked, f"r{index}", uses=[UseRecord(chain[-1], 0, 1.0)])
        chain.append(asked)
    unanswered = store.add("a", [MemoryDraft("q", kind="exchange", status="open")])[0].id
    store.complete("a", unanswered, "", "interrupted", uses=[UseRecord(fact, 0, 1.0)])
    plan = store.plan_erase(Selector("a", ids=[fact]))
    assert [record.id for record in plan.dependants] == chain[1:]
    receipt = store.erase(plan)
    assert list(receipt["rewritten"]) == chain[1:]
    assert [record.reply for record in store.list("a")] == [None] * 5 and store.uses_of("a", unanswered) == []
    assert store.verify(deep=True).ok


def test_without_cascade_replies_stay(store: Store, fill: Any) -> None:
    family = fill(store)
    plan = store.plan_erase(Selector("alice", ids=[family.fact]), cascade="none")
    assert plan.dependants == ()
    receipt = store.erase(plan)
    assert receipt["rewritten"] == {} and receipt["cascade"] == "none"
    assert store.get("alice", family.reply).reply == "Clara is a nurse."
    assert store.uses_of("alice", family.reply) == [] and store.verify(deep=True).ok


def test_a_receipt_is_signed_and_says_nothing_of_the_words(store: Store, fill: Any) -> None:
    family = fill(store)
    receipt = store.erase(store.plan_erase(Selector("alice", ids=[family.fact])))
    assert store.receipts() == [receipt] and verify_receipt(json.loads(json.dumps(receipt)))
    assert all(receipt["checks"].values()) and receipt["erased"] == [family.fact]
    said = json.dumps(receipt)
    assert not any(word in said for word in ("Clara", "nurse", "alice", "evening"))
    for key, value in receipt.items():
        forged = {**receipt, key: [value] if key != "memories" else value + 1}
        assert not verify_receipt(forged), key
        assert not verify_receipt({name: field for name, field in receipt.items() if name != key}), key
    assert not verify_receipt(receipt, public="AAAA")


def test_a_stale_plan_is_refused(store: Store, fill: Any) -> None:
    family = fill(store)
    plan = store.plan_erase(Selector("alice", ids=[family.fact]))
    asked = store.add("alice", [MemoryDraft("again?", kind="exchange", status="open")])[0]
    store.complete("alice", asked.id, "A nurse.", uses=[UseRecord(family.fact, 0, 1.0)])
    with pytest.raises(StalePlanError):
        store.erase(plan)
    fresh = store.plan_erase(Selector("alice", ids=[family.fact]))
    assert len(fresh.dependants) == 2
    store.erase(fresh)
    with pytest.raises(StalePlanError):
        store.erase(fresh)
    whole = store.plan_erase(Selector("alice", everything=True))
    store.add("alice", [MemoryDraft("late")])
    with pytest.raises(StalePlanError):
        store.erase(whole)
    assert store.count("alice") == 4 and store.verify(deep=True).ok


def test_a_plan_that_selects_nothing(store: Store, fill: Any) -> None:
    fill(store)
    plan = store.plan_erase(Selector("alice", matching="zebra"))
    assert plan.selected == () and plan.bytes_on_disk == 0
    with pytest.raises(NotFoundError):
        store.erase(plan)
    with pytest.raises(NotFoundError):
        store.plan_erase(Selector("nobody", matching="zebra"))


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"matching": ""},
        {"ids": []},
        {"tags": []},
        {"everything": True, "matching": "x"},
        {"since": datetime(2025, 1, 2, tzinfo=UTC), "until": datetime(2025, 1, 1, tzinfo=UTC)},
    ],
)
def test_a_selector_that_does_not_say_what_is_refused(store: Store, chosen: dict[str, Any]) -> None:
    store.ensure_namespace("a")
    with pytest.raises(InvalidSelectorError):
        store.plan_erase(Selector("a", **chosen))


def test_selectors_combine(store: Store) -> None:
    session = store.create_session("a", "s")
    records = store.add(
        "a",
        [
            MemoryDraft("red boat", tags=["x"], source="f1"),
            MemoryDraft("red car", tags=["x", "y"], session_id=session.id),
            MemoryDraft("blue boat", tags=["y"], source="f1", session_id=session.id),
        ],
    )

    def chosen(**fields: Any) -> list[str]:
        return [record.text for record in store.plan_erase(Selector("a", **fields)).selected]

    assert chosen(matching="RED") == ["red boat", "red car"]
    assert chosen(matching="boat", source="f1", tags=["y"]) == ["blue boat"]
    assert chosen(session_id=session.id) == ["red car", "blue boat"]
    assert chosen(ids=[records[0].id], matching="car") == []
    assert chosen(everything=True) == ["red boat", "red car", "blue boat"]
    assert chosen(until=records[0].created_at) == []


def test_a_session_goes_with_its_last_memory_and_a_title_with_its_words(store: Store) -> None:
    whole = store.create_session("a", "about Clara")
    part = store.create_session("a", "My sister Clara works…")
    other = store.create_session("a", "boats")
    store.add("a", [MemoryDraft("Clara again", session_id=whole.id)])
    store.add("a", [MemoryDraft("My sister Clara works as a nurse", session_id=part.id)])
    store.add(
        "a", [MemoryDraft("unrelated", session_id=part.id), MemoryDraft("Clara's boat", session_id=other.id)]
    )
    store.add("a", [MemoryDraft("sail", session_id=other.id)])
    store.erase(store.plan_erase(Selector("a", matching="clara")))
    assert {session.id: session.title for session in store.sessions("a")} == {
        part.id: None,
        other.id: "boats",
    }


def test_a_whole_namespace_goes_with_its_name(either_store: Store, bank: Path, fill: Any) -> None:
    store = either_store
    fill(store, "alice")
    family = fill(store, "bob")
    files = {path.name for folder in ("namespaces", "keys") for path in (bank / folder).iterdir()}
    plan = store.plan_erase(Selector("alice", everything=True))
    assert len(plan.selected) == 3 and plan.dependants == ()
    receipt = store.erase(plan)
    assert receipt["whole_namespace"] and receipt["frames"] >= 9 and verify_receipt(receipt)
    assert store.namespaces() == ["bob"] and store.list("alice") == []
    left = {path.name for folder in ("namespaces", "keys") for path in (bank / folder).iterdir()}
    assert left < files
    assert store.get("bob", family.reply).reply == "Clara is a nurse." and store.verify(deep=True).ok
    assert store.add("alice", [MemoryDraft("a new beginning")])[0].ordinal == 1


def test_the_ordinal_of_the_last_memory_is_free_again(store: Store) -> None:
    """The bank equals one that never held it."""
    store.add("a", [MemoryDraft("one")])
    gone = store.add("a", [MemoryDraft("two")])[0]
    store.erase(store.plan_erase(Selector("a", ids=[gone.id])))
    assert store.add("a", [MemoryDraft("three")])[0].ordinal == 2


def test_what_has_expired_is_erased_on_demand(store: Store) -> None:
    past, future = datetime(2020, 1, 1, tzinfo=UTC), datetime(2999, 1, 1, tzinfo=UTC)
    drafts = [MemoryDraft("old", expires_at=past), MemoryDraft("new", expires_at=future), MemoryDraft("kept")]
    old = store.add("a", drafts)[0]
    plan = store.plan_expired("a")
    assert [record.id for record in plan.selected] == [old.id]
    store.erase(plan)
    assert store.plan_expired("a").selected == () and store.count("a") == 2
    assert [line["action"] for line in store.audit()] == ["erase", "erased"]


def test_an_erased_content_key_can_be_remembered_again(store: Store) -> None:
    first = store.add("a", [MemoryDraft("one", content_key=b"k"), MemoryDraft("other")])[0]
    store.erase(store.plan_erase(Selector("a", ids=[first.id])))
    assert store.add("a", [MemoryDraft("one", content_key=b"k")])[0].id != first.id


def test_a_reader_in_the_way_withholds_the_receipt(bank: Path, fill: Any) -> None:
    with Store.open(bank, encrypted=False) as store:
        family = fill(store)
        path = next((bank / "namespaces").glob("*.db"))
        reader = sqlcipher3.dbapi2.connect(str(path), isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM memory").fetchone()
        with pytest.raises(ErasePendingError):
            store.erase(store.plan_erase(Selector("alice", ids=[family.fact])))
        with pytest.raises(NotFoundError):
            store.get("alice", family.fact)
        assert store.receipts() == [] and store.lexical("alice", "Clara", 9) == []
        with pytest.raises(ErasePendingError):
            store.resume()
        store.add("alice", [MemoryDraft("life goes on")])
        with Store.open(bank, lock_wait_s=0.2) as second:
            assert second.receipts() == [] and second.count("alice") == 3
        reader.execute("COMMIT")
        reader.close()
        (receipt,) = store.resume()
        assert receipt["erased"] == [family.fact] and store.receipts() == [receipt] and store.resume() == []
        assert store.verify(deep=True).ok


KilledAtEachPoint = Callable[[Callable[[], Callable[[], object]], Callable[[int], None]], int]


@pytest.mark.parametrize("whole", [False, True], ids=["closure", "namespace"])
@pytest.mark.parametrize("encrypted", [True, False], ids=["encrypted", "plain"])
def test_an_erase_killed_at_each_point_is_finished_or_never_began(
    fast_disk: Path, encrypted: bool, whole: bool, fill: Any, killed_at_each_point: KilledAtEachPoint
) -> None:
    made = [0]
    states: list[bool] = []
    with Store.open(fast_disk / "filled", encrypted=encrypted) as store:
        family = fill(store)

    def prepare() -> Callable[[], object]:
        store = Store.open(shutil.copytree(fast_disk / "filled", fast_disk / f"bank-{made[0]}"))
        selector = Selector("alice", everything=True) if whole else Selector("alice", ids=[family.fact])
        plan = store.plan_erase(selector)
        return lambda: store.erase(plan)

    def check(point: int) -> None:
        bank = fast_disk / f"bank-{made[0]}"
        with Store.open(bank) as store:
            report = store.verify(deep=True)
            assert report.ok, (point, report.problems)
            receipts = store.receipts()
            states.append(bool(receipts))
            if receipts:
                assert verify_receipt(receipts[0]) and all(receipts[0]["checks"].values())
                assert store.lexical("alice", "Clara nurse", 9) == [] and store.count("alice") == (
                    0 if whole else 2
                )
                assert [record.reply for record in store.list("alice")] == ([] if whole else [None, None])
            else:
                assert store.count("alice") == 3 and len(store.lexical("alice", "Clara", 9)) == 2
        if receipts and not encrypted:
            for path in bank.rglob("*"):
                assert not path.is_file() or b"Clara" not in path.read_bytes(), (point, path)
        made[0] += 1

    points = killed_at_each_point(prepare, check)
    assert points >= 10 and states == sorted(states) and states[-1] and not states[0]
