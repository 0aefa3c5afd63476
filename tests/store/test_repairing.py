import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlcipher3.dbapi2

from mnemos.errors import BankReadOnlyError, BankUnreadableError, NotFoundError
from mnemos.store import verify_findings
from mnemos.store.frames import HEADER_BYTES
from mnemos.store.records import MemoryDraft, RepairReport, Selector
from mnemos.store.store import Store

KilledAtEachPoint = Callable[[Callable[[], Callable[[], object]], Callable[[int], None]], int]


@pytest.fixture
def bank(fast_disk: Path) -> Path:
    return fast_disk / "bank"


def _sql(path: Path, *statements: str) -> list[Any]:
    connection = sqlcipher3.dbapi2.connect(str(path))
    found: list[Any] = []
    for statement in statements:
        found = connection.execute(statement).fetchall()
    connection.commit()
    connection.close()
    return found


def _frame(bank: Path, owner: str, kind: int) -> tuple[Path, int, int]:
    """Segment, offset and length of a live frame: kind 1 is text, 2 kv, 3 route."""
    query = f"SELECT segment, start, length FROM frames WHERE owner='{owner}' AND kind={kind} AND live=1"
    ((segment, start, length),) = _sql(bank / "catalog.db", query)
    return bank / "segments" / f"{segment:04d}.seg", start, length


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x41
    path.write_bytes(bytes(data))


def _snapshot(store: Store) -> dict[str, Any]:
    """Everything of alice's that can be told from outside, but for traces."""
    records = store.list("alice", include_hidden=True, newest_first=False)
    return {
        "words": [
            (r.id, r.text, r.reply, r.kind, r.ordinal, r.created_at, r.tags, r.status, r.session_id)
            for r in records
        ],
        "search": [memory_id for memory_id, _ in store.lexical("alice", "Clara nurse boat", 10)],
        "uses": {r.id: store.uses_of("alice", r.id) for r in records},
    }


@pytest.fixture(params=[True, False], ids=["encrypted", "plain"])
def filled(bank: Path, fill: Any, request: pytest.FixtureRequest) -> Any:
    """A closed bank: (path, ids, what it holds)."""
    with Store.open(bank, encrypted=request.param) as store:
        family = fill(store)
        store.set_flags("alice", family.other, pinned=True)
        store.reclaim()
        held = _snapshot(store)
    return bank, family, held


def _repaired(bank: Path) -> RepairReport:
    """Damage is found, mended, and gone for good."""
    with Store.open(bank) as store:
        assert not store.verify(deep=True).ok
        report = store.repair()
    assert report.after.ok and (report.repaired or report.quarantined)
    with Store.open(bank) as store:
        again = store.verify(deep=True)
        assert again.ok and again.quarantined == report.after.quarantined
        assert store.repair().repaired == ()
        store.add("alice", [MemoryDraft("written after")])
        assert store.verify(deep=True).ok
        (added,) = store.list("alice", matching="written after")
        store.erase(store.plan_erase(Selector("alice", ids=[added.id])))
    return report


@pytest.mark.parametrize("at", [0, 20, HEADER_BYTES, -1])
def test_a_text_frame_is_written_anew_from_the_database(filled: Any, at: int) -> None:
    bank, ids, held = filled
    segment, start, length = _frame(bank, ids.reply, 1)
    _flip(segment, start + at % length)
    report = _repaired(bank)
    assert [(fix.kind, fix.subject) for fix in report.repaired] == [("corrupt-frame", ids.reply)]
    assert report.quarantined == ()
    with Store.open(bank) as store:
        assert _snapshot(store) == held
        assert store.get_kv("alice", ids.reply) == b"kv" * 3000  # its trace was whole, and is


@pytest.mark.parametrize("kind", [2, 3])
def test_a_damaged_trace_is_dropped_and_wanted_again(filled: Any, kind: int) -> None:
    bank, ids, held = filled
    segment, start, length = _frame(bank, ids.fact, kind)
    _flip(segment, start + length // 2)
    assert [fix.subject for fix in _repaired(bank).repaired] == [ids.fact]
    with Store.open(bank) as store:
        assert _snapshot(store) == held
        assert store.pending_traces("alice", "model-a") == [("alice", ids.fact)]
        with pytest.raises(NotFoundError):
            store.get_kv("alice", ids.fact)


def test_a_lost_segment_takes_traces_but_no_words(filled: Any) -> None:
    bank, _ids, held = filled
    (bank / "segments" / "0001.seg").unlink()
    report = _repaired(bank)
    assert report.quarantined == ()
    assert "missing-segment" in {fix.kind for fix in report.repaired}
    with Store.open(bank) as store:
        assert _snapshot(store) == held
        assert len(store.pending_traces("alice", "model-a")) == 3
        assert (bank / "segments" / "0002.seg").exists()


def test_a_segment_cut_short(filled: Any) -> None:
    bank, _ids, held = filled
    segment = bank / "segments" / "0001.seg"
    os.truncate(segment, segment.stat().st_size // 3)
    assert _repaired(bank).quarantined == ()
    with Store.open(bank) as store:
        assert _snapshot(store) == held


def test_a_segment_with_a_foreign_header(filled: Any) -> None:
    bank, _ids, held = filled
    _flip(bank / "segments" / "0001.seg", 3)
    assert [fix.kind for fix in _repaired(bank).repaired] == ["corrupt-segment"]
    with Store.open(bank) as store:
        assert _snapshot(store) == held


@pytest.mark.parametrize("loss", ["unlinked", "emptied", "halved", "scribbled"])
def test_the_words_are_rebuilt_from_the_frames(filled: Any, loss: str) -> None:
    bank, ids, held = filled
    words = next((bank / "namespaces").glob("*.db"))
    size = words.stat().st_size
    if loss == "unlinked":
        words.unlink()
    elif loss == "scribbled":
        data = bytearray(words.read_bytes())
        data[4096:size:512] = bytes(len(data[4096:size:512]))
        words.write_bytes(bytes(data))
    else:
        os.truncate(words, 0 if loss == "emptied" else size // 2)
    for side in ("-wal", "-shm"):
        words.with_name(words.name + side).unlink(missing_ok=True)
    with Store.open(bank) as store, pytest.raises(BankUnreadableError):
        store.list("alice")
        store.verify()
        raise BankUnreadableError  # a plain database may still give its first pages
    report = _repaired(bank)
    assert report.quarantined == ()
    with Store.open(bank) as store:
        assert _snapshot(store) == held
        assert store.get_kv("alice", ids.fact) == b"kv" * 3000
    assert [path.suffix for path in (bank / "namespaces").iterdir()] == [".db"]


def test_a_lost_row_of_words_comes_back(bank: Path, fill: Any) -> None:
    with Store.open(bank, encrypted=False) as store:
        family = fill(store)
        store.reclaim()
        held = _snapshot(store)
    words = next((bank / "namespaces").glob("*.db"))
    _sql(words, f"DELETE FROM memory WHERE id='{family.fact}'")
    _sql(words, f"UPDATE memory SET text='changed' WHERE id='{family.other}'")
    report = _repaired(bank)
    assert {fix.kind for fix in report.repaired} == {"missing-words", "words-differ"}
    with Store.open(bank) as store:
        assert _snapshot(store) == held


def test_the_lexical_index_is_made_anew(bank: Path, fill: Any) -> None:
    with Store.open(bank, encrypted=False) as store:
        fill(store)
        store.reclaim()
        held = _snapshot(store)
    _sql(next((bank / "namespaces").glob("*.db")), "DELETE FROM words_docsize")
    assert [fix.kind for fix in _repaired(bank).repaired] == ["index-mismatch"]
    with Store.open(bank) as store:
        assert _snapshot(store) == held


@pytest.mark.parametrize("loss", ["unlinked", "emptied", "flipped"])
def test_lost_data_keys_take_traces_but_no_words(bank: Path, fill: Any, loss: str) -> None:
    with Store.open(bank) as store:
        family = fill(store)
        store.reclaim()
        held = _snapshot(store)
    keys = next((bank / "keys").iterdir())
    if loss == "unlinked":
        keys.unlink()
        with Store.open(bank) as store:
            with pytest.raises(BankUnreadableError, match="copied without its keys"):
                store.get_kv("alice", family.fact)
            report = store.verify()
            assert not report.ok and any("without its keys" in each.detail for each in report.problems)
    elif loss == "emptied":
        keys.write_bytes(b"")
    else:
        _flip(keys, 30)
    report = _repaired(bank)
    assert report.quarantined == ()
    with Store.open(bank) as store:
        assert _snapshot(store) == held
        assert store.pending_traces("alice", "model-a")


def test_words_lost_in_both_places_are_put_in_quarantine(filled: Any) -> None:
    bank, ids, held = filled
    segment, start, length = _frame(bank, ids.other, 1)
    good = segment.read_bytes()
    _flip(segment, start + length - 3)
    next((bank / "namespaces").glob("*.db")).unlink()
    report = _repaired(bank)
    assert [lost.subject for lost in report.quarantined] == [ids.other]
    with Store.open(bank) as store:
        record = store.get("alice", ids.other)
        assert (record.status, record.text, record.hidden) == ("damaged", "", True)
        assert ids.other not in {each.id for each in store.list("alice")}
        assert store.pending_traces("alice", "model-b").count(("alice", ids.other)) == 0
        assert [each.id for each in store.list("alice", newest_first=False)] == [ids.fact, ids.reply]
    # The frame is readable again: as from a copy of the file, put back.
    with segment.open("r+b") as file:
        file.seek(start)
        file.write(good[start : start + length])
    with Store.open(bank) as store:
        again = store.repair()
        assert again.after.ok and not again.after.quarantined
        mended = store.get("alice", ids.other)
        assert (mended.text, mended.status, mended.hidden) == (
            "The boat is painted green.",
            "complete",
            False,
        )
        assert _snapshot(store)["search"] == held["search"]


def test_a_memory_in_quarantine_can_be_forgotten(filled: Any) -> None:
    bank, ids, _held = filled
    segment, start, _length = _frame(bank, ids.other, 1)
    _flip(segment, start + 60)
    next((bank / "namespaces").glob("*.db")).unlink()
    keys = list((bank / "keys").iterdir())
    for path in keys:
        path.unlink()
    report = _repaired(bank)
    # Without the keys every frame is lost, and the words went with the database.
    assert {lost.subject for lost in report.quarantined} == (
        {ids.fact, ids.other, ids.reply} if keys else {ids.other}
    )
    with Store.open(bank) as store:
        store.erase(store.plan_erase(Selector("alice", ids=[ids.other])))
        after = store.verify(deep=True)
        assert after.ok and ids.other not in {lost.subject for lost in after.quarantined}


def test_a_memory_that_the_catalog_lost_is_entered_again(filled: Any) -> None:
    bank, ids, held = filled
    _sql(
        bank / "catalog.db",
        f"DELETE FROM memories WHERE id='{ids.other}'",
        f"DELETE FROM frames WHERE owner='{ids.fact}' AND kind=1",
    )
    report = _repaired(bank)
    assert {fix.kind for fix in report.repaired} == {"orphan-words", "orphan-frame", "corrupt-frame"}
    with Store.open(bank) as store:
        assert _snapshot(store) == held


def test_what_a_receipt_says_is_gone_goes_again(filled: Any, tmp_path: Path) -> None:
    """As when the namespace's database is put back from a copy made before."""
    bank, ids, _held = filled
    words = next((bank / "namespaces").glob("*.db"))
    copy = words.read_bytes()
    with Store.open(bank) as store:
        store.erase(store.plan_erase(Selector("alice", ids=[ids.other])))
    words.write_bytes(copy)
    report = _repaired(bank)
    assert ("present-though-erased", ids.other) in {(fix.kind, fix.subject) for fix in report.repaired}
    with Store.open(bank) as store:
        assert [each.id for each in store.list("alice", newest_first=False)] == [ids.fact, ids.reply]
        assert store.lexical("alice", "boat", 3) == []


def test_a_repair_is_in_the_audit_log_and_a_sound_bank_is_left_alone(filled: Any) -> None:
    bank, ids, held = filled
    with Store.open(bank) as store:
        report = store.repair()
        assert report.repaired == () and report.quarantined == () and report.after.ok
        assert store.audit() == [] and _snapshot(store) == held
    segment, start, _length = _frame(bank, ids.fact, 1)
    _flip(segment, start)
    with Store.open(bank) as store:
        store.repair()
        assert [(line["action"], line["count"]) for line in store.audit()] == [
            ("repair", 1),
            ("quarantine", 0),
        ]
    with Store.open(bank, read_only=True) as store, pytest.raises(BankReadOnlyError):
        store.repair()


def test_a_repair_killed_at_each_point_loses_no_words(
    fast_disk: Path, fill: Any, killed_at_each_point: KilledAtEachPoint
) -> None:
    bank, pristine = fast_disk / "bank", fast_disk / "pristine"
    with Store.open(bank) as store:
        family = fill(store)
        store.reclaim()
        held = _snapshot(store)
    segment, start, _length = _frame(bank, family.fact, 1)
    _flip(segment, start + 5)
    words = next((bank / "namespaces").glob("*.db"))
    data = bytearray(words.read_bytes())
    data[-3000:-2000] = bytes(1000)
    words.write_bytes(bytes(data))
    shutil.copytree(bank, pristine)

    def prepare() -> Callable[[], object]:
        shutil.rmtree(bank)
        shutil.copytree(pristine, bank)
        store = Store.open(bank)
        return store.repair

    def check(point: int) -> None:
        if point % 3:
            return
        with Store.open(bank) as store:
            assert store.repair().after.ok, point
            assert {row[:3] for row in _snapshot(store)["words"]} == {row[:3] for row in held["words"]}, point

    assert killed_at_each_point(prepare, check) > 10


def test_a_killed_verify_goes_on_where_it_was(
    bank: Path, in_child: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_findings, "_SAVE_EVERY_S", 0.0)
    with Store.open(bank) as store:
        ids = [record.id for record in store.add("a", [MemoryDraft(f"text {n}") for n in range(60)])]
        store.add("b", [MemoryDraft("one more")])
    for owner in (ids[3], ids[50]):
        segment, start, length = _frame(bank, owner, 1)
        _flip(segment, start + length - 1)

    def die_half_way() -> None:
        with Store.open(bank) as store:
            looked: list[int] = []
            real = store._core.segments.read

            def read(*args: Any) -> bytes:
                looked.append(1)
                if len(looked) == 40:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args)

            store._core.segments.read = read  # type: ignore[method-assign]
            store.verify(deep=True)

    with Store.open(bank) as store:
        whole = store.verify(deep=True)
    assert in_child(die_half_way) == -signal.SIGKILL
    state = json.loads((bank / "verify.state").read_text())
    assert state["at"] is not None and ids[3] in json.dumps(state["problems"])
    with Store.open(bank) as store:
        reads: list[int] = []
        real = store._core.segments.read

        def count(*args: Any) -> bytes:
            reads.append(1)
            return real(*args)

        monkeypatch.setattr(store._core.segments, "read", count)
        assert not (bank / "verify.state.part").exists()
        resumed = store.verify(deep=True, resume=True)
        assert set(resumed.problems) == set(whole.problems) and resumed.checked == whole.checked
        went_on = len(reads)
        assert not (bank / "verify.state").exists()
        assert set(store.verify(deep=True, resume=True).problems) == set(whole.problems)
        assert went_on <= len(reads) - went_on - 30
    for broken in (b"", b"{", b"[]", b'{"v": 1}', json.dumps(state | {"at": [1]}).encode()):
        (bank / "verify.state").write_bytes(broken)
        with Store.open(bank) as store:
            assert set(store.verify(deep=True, resume=True).problems) >= {whole.problems[1]}
