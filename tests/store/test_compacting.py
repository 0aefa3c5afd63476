import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlcipher3.dbapi2

from mnemos.errors import BankFullError, BankReadOnlyError, ErasePendingError, UsageError
from mnemos.store import compacting
from mnemos.store.records import MemoryDraft, Selector, TraceDraft
from mnemos.store.store import Store

KilledAtEachPoint = Callable[[Callable[[], Callable[[], object]], Callable[[int], None]], int]


def crowd(store: Store, memories: int = 12, *, segment_bytes: int = 8192) -> dict[str, str]:
    """Memories with traces over several small segments; words by id."""
    store._core.segment_bytes = segment_bytes
    texts: dict[str, str] = {}
    for number in range(memories):
        words = f"memory number {number} of canary{number:03d}q " + os.urandom(150).hex()
        record = store.add("alice", [MemoryDraft(words)])[0]
        texts[record.id] = words
        store.put_traces(
            "alice", [TraceDraft(record.id, "m", 5, payload(record.id), b"r" + payload(record.id))]
        )
    return texts


def payload(memory_id: str) -> bytes:
    """Bytes that no codec makes smaller."""
    return random.Random(memory_id).randbytes(800)


def thin_out(store: Store, texts: dict[str, str], keep: int = 3) -> dict[str, str]:
    """Erases all but every `keep`-th memory; what is left."""
    kept = dict(list(texts.items())[::keep])
    store.erase(store.plan_erase(Selector("alice", ids=[i for i in texts if i not in kept])))
    return kept


def check_whole(store: Store, texts: dict[str, str]) -> None:
    report = store.verify(deep=True)
    assert report.ok, report.problems
    assert {record.id: record.text for record in store.list("alice")} == texts
    assert store.get_kvs("alice", list(texts)) == {i: payload(i) for i in texts}
    assert store.get_routes("alice", list(texts)) == {i: b"r" + payload(i) for i in texts}


def test_what_lives_moves_together_and_the_rest_goes(either_store: Store, bank: Path) -> None:
    store = either_store
    texts = crowd(store)
    store.put_prefix("m", b"prefix" * 100)
    kept = thin_out(store, texts)
    segments = len(list((bank / "segments").iterdir()))
    assert segments >= 4
    told: list[tuple[int, int]] = []
    report = store.compact(on_progress=lambda done, total: told.append((done, total)))
    assert report.is_finished and report.frames_left == 0 and report.segments_removed >= segments - 1
    assert report.frames_moved >= 3 * len(kept) and report.bytes_after < report.bytes_before
    assert told[-1][0] == told[-1][1] == report.bytes_moved
    check_whole(store, kept)
    assert store.get_prefix("m") == b"prefix" * 100
    with sqlite3.connect(bank / "catalog.db") as connection:
        assert connection.execute("SELECT count(*) FROM frames WHERE live = 0").fetchone() == (0,)
    again = store.compact()
    assert (again.frames_moved, again.segments_removed) == (0, 0)
    assert store.add("alice", [MemoryDraft("life goes on")])[0].ordinal == max(len(texts), 1) - 1
    store.close()
    with Store.open(bank) as reopened:
        assert reopened.count("alice") == len(kept) + 1 and reopened.verify(deep=True).ok


def test_an_empty_bank_and_one_of_which_everything_was_erased(store: Store, bank: Path) -> None:
    assert store.compact().segments_removed == 0
    crowd(store, 4)
    store.erase(store.plan_erase(Selector("alice", everything=True)))
    report = store.compact()
    assert report.frames_moved == 0 and report.segments_removed >= 1 and store.verify(deep=True).ok
    assert len(list((bank / "segments").iterdir())) == 1
    assert store.compact().segments_removed == 0
    texts = crowd(store, 2)
    check_whole(store, texts)


def test_superseded_frames_make_room(store: Store) -> None:
    texts = crowd(store, 6)
    for memory_id in texts:
        store.put_traces(
            "alice", [TraceDraft(memory_id, "m", 5, payload(memory_id), b"r" + payload(memory_id))]
        )
    assert store.compact().segments_removed >= 1
    check_whole(store, texts)


def test_small_neighbours_are_merged(store: Store, bank: Path) -> None:
    texts = crowd(store, 8, segment_bytes=2048)
    store._core.segment_bytes = 1 << 20
    before = len(list((bank / "segments").iterdir()))
    report = store.compact()
    assert before >= 4 and report.segments_removed == before - 1
    check_whole(store, texts)


def test_a_budget_stops_it_and_the_next_run_goes_on(store: Store) -> None:
    kept = thin_out(store, crowd(store))
    first = compacting.compact(store._core, max_bytes=1, group_bytes=1)
    assert not first.is_finished and first.frames_moved == 1
    check_whole(store, kept)
    assert store.compact().is_finished
    check_whole(store, kept)
    assert store.compact().frames_moved == 0


@pytest.mark.parametrize("wrong", [{"min_dead_share": 0}, {"min_dead_share": 1.1}, {"max_bytes": 0}])
def test_wrong_wishes(store: Store, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        store.compact(**wrong)


def test_no_room_and_read_only(store: Store, bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = thin_out(store, crowd(store))
    with monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1 << 20}))
        with pytest.raises(BankFullError):
            store.compact()
    check_whole(store, kept)
    with Store.open(bank, read_only=True) as reader, pytest.raises(BankReadOnlyError):
        reader.compact()


@pytest.mark.parametrize(("at", "left"), [(30, 1), (-5, 1), (100, 0)], ids=["header", "tag", "payload"])
def test_a_damaged_frame_is_for_verify_to_name(store: Store, bank: Path, at: int, left: int) -> None:
    """One that looks damaged without its key stays where it is; what only the key shows moves along."""
    kept = thin_out(store, crowd(store))
    with sqlite3.connect(bank / "catalog.db") as connection:
        segment, start, length, owner = connection.execute(
            "SELECT segment, start, length, owner FROM frames WHERE kind = 2 ORDER BY segment, start"
        ).fetchone()
    with (bank / "segments" / f"{segment:04d}.seg").open("r+b") as file:
        file.seek(start + at % length)
        file.write(b"\xff\x00\xff")
    report = store.compact()
    assert report.frames_left == left
    assert (bank / "segments" / f"{segment:04d}.seg").exists() == bool(left)
    assert [(each.kind, each.subject) for each in store.verify(deep=True).problems] == [
        ("corrupt-frame", owner)
    ]
    assert {record.id: record.text for record in store.list("alice")} == kept


def test_an_erase_that_waits_for_a_reader_comes_first(bank: Path) -> None:
    with Store.open(bank, encrypted=False) as store:
        texts = crowd(store)
        path = next((bank / "namespaces").glob("*.db"))
        reader = sqlcipher3.dbapi2.connect(str(path), isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM memory").fetchone()
        with pytest.raises(ErasePendingError):
            thin_out(store, texts)
        segments = sorted((bank / "segments").iterdir())
        with pytest.raises(ErasePendingError):
            store.compact()
        assert sorted((bank / "segments").iterdir()) == segments
        reader.execute("COMMIT")
        reader.close()
        assert store.compact().segments_removed and len(store.receipts()) == 1
        check_whole(store, dict(list(texts.items())[::3]))


def test_a_compaction_killed_at_each_point_loses_nothing(
    fast_disk: Path, killed_at_each_point: KilledAtEachPoint
) -> None:
    """Each time the bank opens whole; what is erased after that is gone from every file, and what was erased
    before stays gone."""
    with Store.open(fast_disk / "filled", encrypted=False) as store:
        texts = crowd(store, 3, segment_bytes=4096)
        kept = thin_out(store, texts, keep=2)
    gone = [words for memory_id, words in texts.items() if memory_id not in kept]
    victim = next(iter(kept))
    made = [0]
    finished: list[bool] = []

    def prepare() -> Callable[[], object]:
        store = Store.open(shutil.copytree(fast_disk / "filled", fast_disk / f"bank-{made[0]}"))
        store.count("alice")
        return lambda: compacting.compact(store._core, group_bytes=2500)

    def check(point: int) -> None:
        bank = fast_disk / f"bank-{made[0]}"
        with Store.open(bank) as store:
            check_whole(store, kept)
            finished.append(store.compact().segments_removed == 0)
            store.erase(store.plan_erase(Selector("alice", ids=[victim])))
        for path in bank.rglob("*"):
            if path.is_file():
                data = path.read_bytes()
                assert not any(words.encode() in data for words in [*gone, kept[victim]]), (point, path)
                assert payload(victim) not in data, (point, path)
        shutil.rmtree(bank)
        made[0] += 1

    assert killed_at_each_point(prepare, check) >= 12
    assert finished[-1] and not finished[0]


def test_an_erase_by_a_process_that_had_the_bank_open_reaches_copies_left_by_a_kill(
    fast_disk: Path, killed_at_each_point: KilledAtEachPoint
) -> None:
    """No open comes between the kill and the erase, so the catalog itself has to name every copy."""
    with Store.open(fast_disk / "filled", encrypted=False) as store:
        texts = crowd(store, 2, segment_bytes=4096)
        kept = thin_out(store, texts, keep=2)
    (victim,) = kept
    made = [0]

    def open_next() -> Store:
        made[0] += 1
        return Store.open(shutil.copytree(fast_disk / "filled", fast_disk / f"bank-{made[0]}"))

    held = [open_next()]

    def prepare() -> Callable[[], object]:
        store = Store.open(fast_disk / f"bank-{made[0]}")
        return lambda: compacting.compact(store._core)

    def check(point: int) -> None:
        with held.pop() as store:
            assert store.get_kv("alice", victim) == payload(victim)
            store.erase(store.plan_erase(Selector("alice", ids=[victim])))
        for path in (fast_disk / f"bank-{made[0]}").rglob("*"):
            assert not path.is_file() or payload(victim)[:60] not in path.read_bytes(), (point, path)
        held.append(open_next())

    assert killed_at_each_point(prepare, check) >= 8
    held.pop().close()


READER = """
import random, sys
from pathlib import Path
from mnemos.store.store import Store
payload = lambda i: random.Random(i).randbytes(800)
bank, ids = Path(sys.argv[1]), sys.argv[2].split(",")
rounds = 0
with Store.open(bank, read_only=True) as store:
    print("ready", flush=True)
    while not (bank.parent / "stop").exists() or rounds < 3:
        store.erase_epoch()
        assert store.get_kvs("alice", ids) == {i: payload(i) for i in ids}
        assert store.get_routes("alice", ids) == {i: b"r" + payload(i) for i in ids}
        for i in ids:
            assert store.get_kv("alice", i) == payload(i)
        assert {record.id for record in store.list("alice")} >= set(ids)
        rounds += 1
print(rounds, flush=True)
"""


def test_readers_in_another_process_never_notice(bank: Path) -> None:
    """Compactions, erases of bystanders and new writes, over and over, beside a process that only reads."""
    with Store.open(bank) as store:
        texts = crowd(store, 9)
        stay = list(texts)[::3]
        command = [sys.executable, "-W", "error", "-c", READER, str(bank), ",".join(stay)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
            assert reader.stdout is not None and reader.stdout.readline() == "ready\n"
            moved = 0
            doomed = [i for i in texts if i not in stay]
            until = time.monotonic() + 3
            while time.monotonic() < until:
                store.erase(store.plan_erase(Selector("alice", ids=doomed)))
                moved += compacting.compact(store._core, group_bytes=1500, min_dead_share=0.01).frames_moved
                doomed = [
                    record.id for record in store.add("alice", [MemoryDraft(os.urandom(900).hex())] * 2)
                ]
            (bank.parent / "stop").touch()
            assert int(reader.stdout.readline()) >= 3
            assert reader.wait() == 0 and moved > 5
        assert store.verify(deep=True).ok


COMPACTER = """
import sys
from pathlib import Path
from mnemos.store import compacting
from mnemos.store.store import Store
with Store.open(Path(sys.argv[1])) as store:
    print("ready", flush=True)
    print(compacting.compact(store._core, group_bytes=1).frames_moved, flush=True)
"""


def test_erases_and_writes_of_another_process_come_between_its_groups(bank: Path) -> None:
    with Store.open(bank, encrypted=False) as store:
        kept = thin_out(store, crowd(store, 12))
        command = [sys.executable, "-W", "error", "-c", COMPACTER, str(bank)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            acts = 0
            gone = []
            while process.poll() is None and len(kept) > 2:
                memory_id = list(kept)[len(kept) // 2]
                gone.append(kept.pop(memory_id))
                store.erase(store.plan_erase(Selector("alice", ids=[memory_id])))
                store.add("bob", [MemoryDraft(f"between {acts}")])
                acts += 1
            assert int(process.stdout.readline()) >= 1 and acts >= 2
        check_whole(store, kept)
        assert store.count("bob") == acts
        for path in bank.rglob("*"):
            data = path.read_bytes() if path.is_file() else b""
            assert not any(words.encode() in data for words in gone), path


def test_a_killed_compaction_by_another_process_hinders_nobody(bank: Path) -> None:
    with Store.open(bank) as store:
        kept = thin_out(store, crowd(store, 12))
        for _ in range(3):
            command = [sys.executable, "-c", COMPACTER, str(bank)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None and process.stdout.readline() == "ready\n"
                time.sleep(0.05)
                process.send_signal(signal.SIGKILL)
            assert {r.id: r.text for r in store.list("alice")} == kept
            assert store.get_kvs("alice", list(kept)) == {i: payload(i) for i in kept}
        store.compact()
        check_whole(store, kept)


def test_a_segment_number_that_another_process_used_anew_is_not_taken_for_the_old_file(bank: Path) -> None:
    """A descriptor kept from a group that was taken back must not swallow the frames of a later one."""
    with Store.open(bank, encrypted=False) as one:
        one._core.segment_bytes = 4096
        one.add("a", [MemoryDraft(os.urandom(900).hex())])
        core = one._core
        with core.writing():
            core.segments.create(2)
            core.segments.write(2, 64, b"a group that was never committed")
        with Store.open(bank, encrypted=False) as two:
            assert not (bank / "segments" / "0002.seg").exists()
            two._core.segment_bytes = 4096
            texts = [os.urandom(1500).hex() for _ in range(2)]
            for words in texts[:1]:
                two.add("a", [MemoryDraft(words)])
            for words in texts[1:]:
                one.add("a", [MemoryDraft(words)])
            assert (bank / "segments" / "0002.seg").exists()
            assert one.verify(deep=True).ok and two.verify(deep=True).ok
