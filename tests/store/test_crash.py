"""Real processes killed with SIGKILL, at every point of a write and at random."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mnemos.store.records import MemoryDraft, TraceDraft, UseRecord
from mnemos.store.store import Store


def test_a_writer_killed_at_random_loses_nothing_that_it_acknowledged(bank: Path) -> None:
    Store.open(bank).close()
    seen: dict[str, str] = {}
    chance = random.Random(7)
    for _ in range(10):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            _write_for_ever(bank, writer)
        os.close(writer)
        with os.fdopen(reader, encoding="ascii") as said:
            first = said.readline()
            time.sleep(chance.random() * 0.25)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            seen.update(line.split() for line in [first, *said] if line.endswith("\n"))  # type: ignore[misc]
        with Store.open(bank) as store:
            report = store.verify(deep=True)
            assert report.ok, report.problems
            held = {record.id: record.text for record in store.list("a", include_hidden=True)}
            assert {memory_id: held.get(memory_id) for memory_id in seen} == {
                i: f"text-{n}" for i, n in seen.items()
            }
            for memory_id in seen:
                assert [hit[0] for hit in store.lexical("a", f"text-{seen[memory_id]}", 1)] == [memory_id]
    assert len(seen) >= 10  # one a round, however slow the machine


def _write_for_ever(bank: Path, writer: int) -> None:
    try:
        with Store.open(bank) as store:
            while True:
                number = os.urandom(6).hex()
                record = store.add("a", [MemoryDraft(f"text-{number}")])[0]
                os.write(writer, f"{record.id} {number}\n".encode("ascii"))
    finally:
        os._exit(1)


KilledAtEachPoint = Callable[[Callable[[], Callable[[], object]], Callable[[int], None]], int]


@pytest.mark.parametrize("encrypted", [True, False], ids=["encrypted", "plain"])
def test_an_add_killed_at_each_point_is_there_or_not(
    fast_disk: Path, encrypted: bool, killed_at_each_point: KilledAtEachPoint
) -> None:
    bank = fast_disk / "bank"
    with Store.open(bank, encrypted=encrypted) as store:
        store.add("a", [MemoryDraft("before")])
    known = 1

    def prepare() -> Callable[[], object]:
        store = Store.open(bank)
        store.count("a")
        return lambda: store.add("a", [MemoryDraft("one"), MemoryDraft("two")])

    def check(point: int) -> None:
        nonlocal known
        with Store.open(bank) as store:
            report = store.verify(deep=True)
            assert report.ok, (point, report.problems)
            assert store.count("a") in (known, known + 2)
            known = store.count("a")
            assert len(store.lexical("a", "one two before", 1000)) == known

    assert killed_at_each_point(prepare, check) >= 6
    assert known > 1


def test_the_first_add_of_a_bank_killed_at_each_point(
    fast_disk: Path, killed_at_each_point: KilledAtEachPoint
) -> None:
    """Making the bank, its key, its namespace, its first segment and its first key page."""
    made = [0]

    def prepare() -> Callable[[], object]:
        return lambda: Store.open(fast_disk / f"bank-{made[0]}").add("a", [MemoryDraft("first")])

    def check(point: int) -> None:
        with Store.open(fast_disk / f"bank-{made[0]}") as store:
            report = store.verify(deep=True)
            assert report.ok, (point, report.problems)
            assert store.count("a") in (0, 1)
            store.add("a", [MemoryDraft("second")])
            assert store.verify(deep=True).ok
        made[0] += 1

    assert killed_at_each_point(prepare, check) >= 12


def test_completing_and_tracing_killed_at_each_point(
    fast_disk: Path, fill: Any, killed_at_each_point: KilledAtEachPoint
) -> None:
    bank = fast_disk / "bank"
    with Store.open(bank) as store:
        family = fill(store)
    rounds = [0]

    def prepare() -> Callable[[], object]:
        store = Store.open(bank)
        store.count("alice")
        rounds[0] += 1

        def act() -> None:
            store.complete("alice", family.reply, "a new reply", uses=[UseRecord(family.other, 0, 2.0)])
            store.put_traces("alice", [TraceDraft(family.reply, "model-b", 9, b"new-kv", b"new-route")])

        return act

    def check(point: int) -> None:
        with Store.open(bank) as store:
            report = store.verify(deep=True)
            assert report.ok, (point, report.problems)
            record = store.get("alice", family.reply)
            used = [use.memory_id for use in store.uses_of("alice", family.reply)]
            assert (record.reply, used) in (
                ("Clara is a nurse.", [family.fact]),
                ("a new reply", [family.other]),
            )
            assert [hit[0] for hit in store.lexical("alice", "new", 9)] == (
                [family.reply] if record.reply == "a new reply" else []
            )
            if record.trace_fingerprint is not None:
                kv = store.get_kv("alice", family.reply)
                assert kv == (b"new-kv" if record.trace_fingerprint == "model-b" else b"kv" * 3000)

    assert killed_at_each_point(prepare, check) >= 10


def test_a_torn_tail_is_cut(bank: Path) -> None:
    with Store.open(bank) as store:
        kept = store.add("a", [MemoryDraft("kept")])[0]
    segment = bank / "segments" / "0001.seg"
    whole = segment.stat().st_size
    with segment.open("ab") as file:
        file.write(b"MNFR half a frame of an unfinished write")
    keys = next((bank / "keys").iterdir())
    with keys.open("r+b") as file:
        file.seek(40_000)
        file.write(b"rubbish")
    (bank / "segments" / "0002.seg").write_bytes(b"the next segment, barely begun")
    with Store.open(bank) as store:
        assert segment.stat().st_size == whole
        assert not (bank / "segments" / "0002.seg").exists()
        assert store.verify(deep=True).ok and store.get("a", kept.id).text == "kept"
        assert store.add("a", [MemoryDraft("more")])[0].ordinal == 2


def test_segments_roll_over(bank: Path) -> None:
    with Store.open(bank, encrypted=False) as store:
        store._core.segment_bytes = 2048
        for index in range(6):
            store.add("a", [MemoryDraft(os.urandom(400).hex()), MemoryDraft(f"small {index}")])
        assert len(list((bank / "segments").iterdir())) >= 3
        assert all(path.stat().st_size <= 2048 for path in (bank / "segments").iterdir())
        assert store.verify(deep=True).ok
