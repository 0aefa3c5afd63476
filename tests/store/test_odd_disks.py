"""File systems that can't do everything: no holes, read-only, not a byte left. And a clock set back."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mnemos.errors import BankFullError, BankReadOnlyError
from mnemos.store import disk
from mnemos.store.records import MemoryDraft, Selector, TraceDraft
from mnemos.store.store import Store

InChild = Callable[[Callable[[], object]], int]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 24 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system can't be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def remount(place: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(place)], check=True)


def fill_to_the_last_byte(place: Path) -> Path:
    ballast = place / "ballast"
    for size in (1 << 20, 4096, 1):
        with ballast.open("ab", buffering=0) as file:
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue
    assert os.statvfs(place).f_bavail == 0
    return ballast


def leave(bank: Path, in_child: InChild, how: str) -> None:
    """A bank with one memory: closed in order, or left by a process that was killed."""

    def work() -> None:
        store = Store.open(bank)
        memory_id = store.add("a", [MemoryDraft("the kettle is red")])[0].id
        store.put_traces("a", [TraceDraft(memory_id, "m", 1, b"kv", b"r")])
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        store.close()

    assert in_child(work) == (-signal.SIGKILL if how == "killed" else 0)


def check_readable(bank: Path) -> None:
    with Store.open(bank, read_only=True) as store:
        (record,) = store.list("a")
        assert record.text == "the kettle is red" and store.get_kv("a", record.id) == b"kv"
        assert [hit[0] for hit in store.lexical("a", "kettle", 3)] == [record.id]
        report = store.verify(deep=True)
        assert report.ok, report.problems
        with pytest.raises(BankReadOnlyError):
            store.add("a", [MemoryDraft("no")])


@pytest.mark.parametrize("how", ["closed", "killed", "killed, shared memory lost"])
def test_a_disk_without_a_byte_left_can_be_read(mounted: Path, in_child: InChild, how: str) -> None:
    bank = mounted / "bank"
    leave(bank, in_child, how.split(",")[0])
    if "lost" in how:
        for path in bank.rglob("*-shm"):
            path.unlink()
    ballast = fill_to_the_last_byte(mounted)
    check_readable(bank)
    if how != "killed":
        with pytest.raises(BankFullError, match="Free some room"):
            Store.open(bank)
        check_readable(bank)
    ballast.unlink()
    with Store.open(bank) as store:
        assert store.verify(deep=True).ok and store.add("a", [MemoryDraft("room again")])[0].ordinal == 2


@pytest.mark.parametrize("how", ["closed", "killed", "killed, shared memory lost"])
def test_a_read_only_disk(mounted: Path, in_child: InChild, how: str) -> None:
    bank = mounted / "bank"
    leave(bank, in_child, how.split(",")[0])
    if "lost" in how:
        for path in bank.rglob("*-shm"):
            path.unlink()
    before = {path: path.read_bytes() for path in mounted.rglob("*") if path.is_file()}
    remount(mounted, "ro")
    try:
        with pytest.raises(BankReadOnlyError, match="read-only"):
            Store.open(bank)
        with pytest.raises(BankReadOnlyError):
            Store.open(mounted / "another")
        check_readable(bank)
        assert {path: path.read_bytes() for path in mounted.rglob("*") if path.is_file()} == before
    finally:
        remount(mounted, "rw")
    with Store.open(bank) as store:
        assert store.verify(deep=True).ok and store.count("a") == 1


def _refused(*args: Any) -> int:
    return -1


@pytest.mark.parametrize("call", [None, _refused], ids=["no such call", "refused"])
def test_a_file_system_without_holes(
    bank: Path, fill: Any, monkeypatch: pytest.MonkeyPatch, call: Callable[..., int] | None
) -> None:
    monkeypatch.setattr(disk, "_libc", lambda name, *arguments: call)
    monkeypatch.setattr(disk, "_HOLE_BYTES", 0)
    with Store.open(bank, encrypted=False) as store:
        fill(store)
        victim, other = store.add("alice", [MemoryDraft("canaryqx"), MemoryDraft("stays")])
        big = os.urandom(50_000)
        store.put_traces(
            "alice", [TraceDraft(victim.id, "m", 1, big, b"r"), TraceDraft(other.id, "m", 1, big, b"r")]
        )
        receipt = store.erase(store.plan_erase(Selector("alice", ids=[victim.id])))
        assert all(receipt["checks"].values())
        data = (bank / "segments" / "0001.seg").read_bytes()
        assert data.count(big) == 1 and bytes(50_000) in data
        assert store.verify(deep=True).ok
        assert store.compact().segments_removed == 1
        assert store.get_kv("alice", other.id) == big and store.verify(deep=True).ok


def test_order_does_not_hang_on_the_clock(bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each memory is written an hour before the one before it, by the clock."""
    noon = datetime(2030, 1, 1, 12, tzinfo=UTC)
    ids = []
    with Store.open(bank) as store:
        session = store.create_session("a", "talk")
        for number in range(5):
            moment = noon - timedelta(hours=number)
            monkeypatch.setattr(time, "time_ns", lambda moment=moment: int(moment.timestamp()) * 10**9)
            draft = MemoryDraft(f"number {number}", session_id=session.id)
            ids += [record.id for record in store.add("a", [draft])]
        asked = store.add("a", [MemoryDraft("and?", kind="exchange", status="open")])[0].id
        store.complete("a", asked, "so")
        assert store.pending_traces("a", "m") == [("a", memory_id) for memory_id in [*ids, asked]]
        store.erase(store.plan_erase(Selector("a", ids=[ids[0]])))
        monkeypatch.setattr(time, "time_ns", lambda: int((noon - timedelta(days=9)).timestamp()) * 10**9)
        store.erase(store.plan_erase(Selector("a", ids=[ids[1]])))
        assert store.sweep_expired() == []
    with Store.open(bank) as store:
        left = [*ids[2:], asked]
        assert [record.id for record in store.list("a", newest_first=False)] == left
        assert [record.ordinal for record in store.list("a", newest_first=False)] == [3, 4, 5, 6]
        assert store.recent_ids("a", 2) == left[:-3:-1]
        assert len(store.receipts()) == 2 and store.verify(deep=True).ok
        assert [line["action"] for line in store.audit()] == ["erase", "erased"] * 2
