"""What a namespace keeps, what a sweep takes, and what no clock can make it take."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from mnemos.errors import NotFoundError, UsageError
from mnemos.store.receipts import verify_receipt
from mnemos.store.records import MemoryDraft, TraceDraft, UseRecord
from mnemos.store.retention import Retention
from mnemos.store.store import Store
from mnemos.store.words import LIVE

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
KilledAtEachPoint = Callable[[Callable[[], Callable[[], object]], Callable[[int], None]], int]


def set_clock(monkeypatch: pytest.MonkeyPatch, moment: datetime) -> None:
    nanoseconds = int(moment.timestamp()) * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: nanoseconds)


def texts(store: Store, namespace: str = "a") -> list[str]:
    return [record.text for record in store.list(namespace, include_hidden=True, newest_first=False)]


def test_limits_are_kept_in_the_namespace(bank: Path) -> None:
    limits = Retention(90 * DAY, 10_000_000, 5)
    with Store.open(bank) as store:
        with pytest.raises(NotFoundError):
            store.retention("a")
        store.set_retention("a", limits)
        assert store.retention("a") == limits and store.namespaces() == ["a"]
        store.add("b", [MemoryDraft("one")])
    with Store.open(bank) as store:
        assert store.retention("a") == limits and store.retention("b") == Retention()
        store.set_retention("a", Retention(max_bytes=7))
        assert store.retention("a") == Retention(max_bytes=7)
        store.set_retention("a", Retention())
        assert not store.retention("a").is_set and store.add("a", [MemoryDraft("x")])
        assert store.verify(deep=True).ok


@pytest.mark.parametrize(
    "limits",
    [Retention(timedelta(0)), Retention(-DAY), Retention(max_bytes=0), Retention(max_memories=-1)],
)
def test_limits_that_keep_nothing_are_refused(store: Store, limits: Retention) -> None:
    with pytest.raises(UsageError, match="more than nothing"):
        store.set_retention("a", limits)
    assert store.namespaces() == []


def test_a_sweep_takes_what_is_too_old_and_leaves_what_is_pinned(either_store: Store) -> None:
    store, now = either_store, datetime.now(UTC)
    old, pinned, _, _ = store.add(
        "a",
        [
            MemoryDraft("old", created_at=now - 31 * DAY),
            MemoryDraft("old and pinned", created_at=now - 400 * DAY),
            MemoryDraft("young", created_at=now - 29 * DAY),
            MemoryDraft("from the future", created_at=now + 400 * DAY),
        ],
    )
    store.set_flags("a", pinned.id, pinned=True)
    asked = store.add("a", [MemoryDraft("what?", kind="exchange", status="open")])[0]
    store.complete("a", asked.id, "it was old", uses=[UseRecord(old.id, 0, 1.0)])
    store.add("a", [MemoryDraft("open", kind="exchange", status="open", created_at=now - 99 * DAY)])
    store.add("b", [MemoryDraft("elsewhere", created_at=now - 99 * DAY)])
    assert store.sweep_expired() == []
    store.set_retention("a", Retention(max_age=30 * DAY))
    plan = store.plan_expired("a")
    assert [record.id for record in plan.selected] == [old.id]
    assert [record.id for record in plan.dependants] == [asked.id]
    (receipt,) = store.sweep_expired()
    assert receipt["erased"] == [old.id] and verify_receipt(receipt)
    assert texts(store) == ["old and pinned", "young", "from the future", "what?", "open"]
    assert texts(store, "b") == ["elsewhere"]
    assert store.sweep_expired() == [] and store.verify(deep=True).ok


def test_a_sweep_comes_down_to_the_bytes_that_are_kept(either_store: Store) -> None:
    store = either_store
    records = store.add("a", [MemoryDraft(f"{index}" * 100) for index in range(6)])
    store.put_traces("a", [TraceDraft(records[4].id, "m", 3, b"k" * 1000, b"r" * 100)])
    store.set_flags("a", records[0].id, pinned=True)
    size = sum(record.text_bytes + record.trace_bytes for record in store.list("a"))
    store.set_retention("a", Retention(max_bytes=size))
    assert store.sweep_expired() == []
    store.set_retention("a", Retention(max_bytes=size - 1))
    (receipt,) = store.sweep_expired()
    assert receipt["erased"] == [records[1].id]
    assert store.sweep_expired() == []
    store.set_retention("a", Retention(max_bytes=300))
    (receipt,) = store.sweep_expired()
    assert receipt["erased"] == [record.id for record in records[2:5]]
    assert texts(store) == ["0" * 100, "5" * 100]
    store.set_retention("a", Retention(max_bytes=1))
    store.sweep_expired()
    assert texts(store) == ["0" * 100] and store.sweep_expired() == []
    assert store.verify(deep=True).ok


def test_a_sweep_of_one_namespace_leaves_the_others(store: Store) -> None:
    past = datetime(2020, 1, 1, tzinfo=UTC)
    for name in ("a", "b"):
        store.add(name, [MemoryDraft("over", expires_at=past), MemoryDraft("one"), MemoryDraft("two")])
        store.set_retention(name, Retention(max_memories=1))
    assert len(store.sweep_expired("a")) == 1
    assert texts(store, "a") == ["two"] and texts(store, "b") == ["over", "one", "two"]
    assert [r.text for r in store.plan_expired("b", Retention(max_memories=2)).selected] == ["over"]
    assert store.sweep_expired("nobody") == []


@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_what_is_past_is_what_a_plain_reading_says(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    limits = Retention(
        data.draw(st.none() | st.integers(1, 6).map(lambda days: days * DAY)),
        data.draw(st.none() | st.integers(1, 60)),
        data.draw(st.none() | st.integers(1, 6)),
    )
    rows = data.draw(
        st.lists(
            st.tuples(st.integers(-8, 2), st.integers(1, 20), st.booleans(), st.none() | st.integers(-2, 2)),
            min_size=1,
            max_size=6,
        )
    )
    now = datetime.now(UTC)
    store = _shared(tmp_path_factory)
    name = f"n{len(store.namespaces())}"
    records = store.add(
        name,
        [
            MemoryDraft(
                "x" * size,
                created_at=now + (days + 0.5) * DAY,
                expires_at=None if ends is None else now + (ends + 0.5) * DAY,
            )
            for days, size, _, ends in rows
        ],
    )
    for record, (_, _, is_pinned, _) in zip(records, rows, strict=True):
        if is_pinned:
            store.set_flags(name, record.id, pinned=True)
    gone = {r.id for r, row in zip(records, rows, strict=True) if row[3] is not None and row[3] < 0}
    if limits.max_age is not None:
        gone |= {
            r.id
            for r, row in zip(records, rows, strict=True)
            if not row[2] and now - r.created_at > limits.max_age
        }
    for record, row in zip(records, rows, strict=True):
        left = [r for r in records if r.id not in gone]
        over = limits.max_memories is not None and len(left) > limits.max_memories
        over |= limits.max_bytes is not None and sum(r.text_bytes for r in left) > limits.max_bytes
        if over and record.id not in gone and not row[2]:
            gone.add(record.id)
    assert {record.id for record in store.plan_expired(name, limits).selected} == gone
    store.set_retention(name, limits)
    assert len(store.sweep_expired(name)) == bool(gone)
    assert {r.id for r in store.list(name, include_hidden=True)} == {r.id for r in records} - gone


_STORES: list[Store] = []


def _shared(factory: pytest.TempPathFactory) -> Store:
    if not _STORES:
        _STORES.append(Store.open(factory.mktemp("shared") / "bank", encrypted=False))
    return _STORES[0]


@pytest.fixture(scope="module", autouse=True)
def _closed() -> object:
    yield None
    while _STORES:
        _STORES.pop().close()


def test_no_clock_makes_a_sweep_take_what_is_young(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    set_clock(monkeypatch, NOON)
    store.add("a", [MemoryDraft("first")])
    store.set_retention("a", Retention(max_age=30 * DAY, max_memories=3))
    for moment in (NOON - 3650 * DAY, NOON, NOON + 30 * DAY):
        set_clock(monkeypatch, moment)
        assert store.sweep_expired() == []
    set_clock(monkeypatch, NOON - 3650 * DAY)
    store.add("a", [MemoryDraft("second"), MemoryDraft("third"), MemoryDraft("fourth")])
    (receipt,) = store.sweep_expired()  # by number: those written first, whatever their dates say
    assert receipt["memories"] == 1 and texts(store) == ["second", "third", "fourth"]


def test_the_index_by_age_is_there_while_age_counts(store: Store) -> None:
    store.add("a", [MemoryDraft("one")])

    def told(query: str) -> str:
        with store._core.get("a").database.read() as connection:
            return str(connection.execute(text(query)).all())

    indexes = "SELECT name FROM sqlite_master WHERE type = 'index'"
    assert "memory_by_age" not in told(indexes)
    store.set_retention("a", Retention(max_age=DAY))
    assert "memory_by_age" in told(indexes)
    query = f"SELECT 1 FROM memory WHERE created_us < 5 AND pinned = 0 AND {LIVE} LIMIT 1"
    assert "memory_by_age" in told(f"EXPLAIN QUERY PLAN {query}")
    store.set_retention("a", Retention(max_memories=3))
    assert "memory_by_age" not in told(indexes)


def test_expiry_is_set_and_taken_away(bank: Path) -> None:
    soon = datetime.now(UTC).replace(microsecond=0) + DAY
    with Store.open(bank) as store:
        fact = store.add("a", [MemoryDraft("short-lived")])[0]
        store.put_traces("a", [TraceDraft(fact.id, "m", 3, b"kv", b"route")])
        store.set_flags("a", fact.id, pinned=True)
        changed = store.set_expiry("a", fact.id[:6], soon)
        assert (changed.expires_at, changed.pinned, changed.trace_fingerprint) == (soon, True, "m")
        assert store.get_kv("a", fact.id) == b"kv" and store.lexical("a", "short", 3)
    with Store.open(bank) as store:
        assert store.get("a", fact.id).expires_at == soon
        assert store.set_expiry("a", fact.id, None).expires_at is None
        assert store.set_expiry("a", fact.id, datetime(2020, 1, 1, tzinfo=UTC)).pinned
        assert store.lexical("a", "short", 3) == [] and store.list("a") == []
        (receipt,) = store.sweep_expired()  # a pin keeps nothing from its own end
        assert receipt["erased"] == [fact.id] and store.verify(deep=True).ok
        with pytest.raises(NotFoundError):
            store.set_expiry("a", fact.id, None)


def test_setting_an_expiry_killed_at_each_point(
    fast_disk: Path, killed_at_each_point: KilledAtEachPoint
) -> None:
    bank = fast_disk / "bank"
    moments: list[datetime | None] = [None, datetime(2900, 1, 1, tzinfo=UTC)]
    with Store.open(bank) as store:
        fact = store.add("a", [MemoryDraft("a fact")])[0]
        store.put_traces("a", [TraceDraft(fact.id, "m", 3, b"kv", b"route")])
        store.set_flags("a", fact.id, pinned=True)

    def prepare() -> Callable[[], object]:
        store = Store.open(bank)
        return lambda: store.set_expiry("a", fact.id, moments[1])

    def check(point: int) -> None:
        with Store.open(bank) as store:
            report = store.verify(deep=True)
            assert report.ok, (point, report.problems)
            held = store.get("a", fact.id)
            assert held.expires_at in moments and held.pinned and held.trace_fingerprint == "m"
            assert store.lexical("a", "fact", 3)[0][0] == fact.id

    assert killed_at_each_point(prepare, check) >= 4
    with Store.open(bank) as store:
        assert store.get("a", fact.id).expires_at == moments[1]
