"""KV that outgrows its budget goes, and nothing else does, whatever step the process dies at."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mnemos.errors import NotFoundError, UsageError
from mnemos.store.records import MemoryDraft, Selector, TraceDraft, UseRecord
from mnemos.store.store import Store

KV = bytes(range(256)) * 64  # it compresses, so frames are smaller
DAY = timedelta(days=1)
FIRST = datetime(2026, 1, 1, tzinfo=UTC)


def filled(store: Store, count: int = 6) -> list[str]:
    drafts = [MemoryDraft(f"number {n}", created_at=FIRST + n * DAY) for n in range(count)]
    ids = [record.id for record in store.add("a", drafts)]
    store.put_traces("a", [TraceDraft(each, "fp", 9, KV, b"route" * 20) for each in ids])
    return ids


def vivid(store: Store) -> set[str]:
    return set(store.kv_sizes("a"))


def test_the_oldest_fade_until_the_budget_holds(store: Store) -> None:
    ids = filled(store)
    size = store.kv_sizes("a")[ids[0]]
    assert store.fade("a").ids == ()  # no budget, no fading
    store.set_kv_budget("a", 3 * size + size // 2)
    faded = store.fade("a")
    assert faded.ids == tuple(ids[:3]) and faded.bytes == 3 * size
    assert vivid(store) == set(ids[3:]) and store.kv_budget("a") == 3 * size + size // 2
    for each in ids[:3]:
        assert store.get_route("a", each) == b"route" * 20
        with pytest.raises(NotFoundError):
            store.get_kv("a", each)
        assert store.get("a", each).trace_fingerprint == "fp"
    assert store.pending_traces("a", "fp") == []  # faint is not pending
    assert store.verify(deep=True).problems == ()
    stats = store.stats("a")
    assert (stats.vivid, stats.faint, stats.kv_bytes) == (3, 3, 3 * size)
    assert store.fade("a").ids == ()


def test_what_was_used_last_and_what_is_pinned_stay(store: Store) -> None:
    ids = filled(store)
    store.set_flags("a", ids[1], pinned=True)
    store.add("a", [MemoryDraft("a question", kind="exchange", uses=[UseRecord(ids[0], 1, 1.0)])])
    assert store.fading_order("a") == [ids[2], ids[3], ids[4], ids[5], ids[0]]
    size = store.kv_sizes("a")[ids[0]]
    store.fade("a", budget_bytes=2 * size + size // 2, spare={ids[3]})
    assert vivid(store) == {ids[1], ids[3]}
    store.fade("a", budget_bytes=0)
    assert vivid(store) == {ids[1]}


def test_an_erased_use_leaves_no_mark_on_the_order(store: Store) -> None:
    ids = filled(store)
    turn = store.add("a", [MemoryDraft("asked", kind="exchange", uses=[UseRecord(ids[0], 1, 1.0)])])[0]
    assert store.fading_order("a")[-1] == ids[0]
    store.erase(store.plan_erase(Selector("a", ids=[turn.id])))
    assert store.fading_order("a") == ids


def test_what_is_dated_in_the_future_is_as_old_as_what_was_made_now(store: Store) -> None:
    drafts = [MemoryDraft("one", created_at=datetime(year, 1, 1, tzinfo=UTC)) for year in (2999, 2020, 2998)]
    ids = [record.id for record in store.add("a", drafts)]
    store.put_traces("a", [TraceDraft(each, "fp", 9, KV, b"r") for each in ids])
    assert store.fading_order("a") == [ids[1], ids[0], ids[2]]  # in the order they were written


def test_a_faint_memory_is_vivid_again_with_its_kv(store: Store) -> None:
    ids = filled(store)
    store.fade("a", budget_bytes=0)
    store.put_traces("a", [TraceDraft(ids[2], "fp", 9, KV, b"route" * 20)])
    assert vivid(store) == {ids[2]} and store.get_kv("a", ids[2]) == KV
    assert store.verify(deep=True).problems == ()


def test_faint_memories_are_erased_for_good(store: Store) -> None:
    ids = filled(store)
    store.fade("a", budget_bytes=0)
    receipt = store.erase(store.plan_erase(Selector("a", ids=ids[:2])))
    assert receipt["memories"] == 2
    assert [record.id for record in store.list("a", newest_first=False)] == ids[2:]
    assert store.get_routes("a", ids) == dict.fromkeys(ids[2:], b"route" * 20)
    assert store.verify(deep=True).problems == ()


def test_what_fades_leaves_no_byte_in_the_segments(bank: Path) -> None:
    secret = b"not-to-be-found-" * 300
    with Store.open(bank, encrypted=False) as store:
        (kept,) = store.add("a", [MemoryDraft("words stay")])
        store.put_traces("a", [TraceDraft(kept.id, "fp", 9, bytes(reversed(secret)) + secret, b"r")])
        store.fade("a", budget_bytes=0)
        held = b"".join(file.read_bytes() for file in bank.rglob("*.seg"))
        assert secret[:16] not in held
        assert store.get("a", kept.id).text == "words stay"


@pytest.mark.parametrize("wrong", [-1, 1 << 63])
def test_a_budget_is_a_number_of_bytes(store: Store, wrong: int) -> None:
    with pytest.raises(UsageError):
        store.set_kv_budget("a", wrong)
    store.set_kv_budget("a", 0)
    assert store.kv_budget("a") == 0
    store.set_kv_budget("a", None)
    assert store.kv_budget("a") is None and store.kv_budget("nobody") is None


KilledAtEachPoint = Callable[[Callable[[], Callable[[], object]], Callable[[int], None]], int]


def test_killed_at_each_point_it_is_vivid_or_faint_and_whole(
    tmp_path: Path, killed_at_each_point: KilledAtEachPoint
) -> None:
    def newest() -> int:
        return len(list(tmp_path.glob("bank-*")))

    def prepare() -> Callable[[], object]:
        bank = tmp_path / f"bank-{newest() + 1}"
        with Store.open(bank) as store:
            filled(store, 4)
        store = Store.open(bank)
        size = min(store.kv_sizes("a").values())
        return lambda: store.fade("a", budget_bytes=2 * size)

    def check(point: int) -> None:
        with Store.open(tmp_path / f"bank-{newest()}") as store:
            ids = [record.id for record in store.list("a", newest_first=False)]
            assert store.verify(deep=True).problems == ()
            left = vivid(store)
            assert left in ({*ids}, {ids[2], ids[3]}, {ids[3]}), point
            assert set(store.get_kvs("a", ids)) == left
            assert set(store.get_routes("a", ids)) == set(ids)
            dead = store.reclaim()
            assert dead == 0  # opening has given it back

    assert killed_at_each_point(prepare, check) >= 3
