"""A disk that fills up: the write fails with a clear error, nothing of it is kept, the bank stays good."""

import errno
import os
import resource
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mnemos.errors import BankError, BankFullError
from mnemos.store.records import MemoryDraft, Selector, TraceDraft
from mnemos.store.store import Store


def test_no_room_is_noticed_before_anything_is_written(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add("a", [MemoryDraft("before")])
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1 << 20}))
    with pytest.raises(BankFullError, match="nothing was written"):
        store.add("a", [MemoryDraft("after")])
    assert store.count("a") == 1 and store.verify(deep=True).ok


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("act", ["pwrite", "fsync"])
def test_the_disk_fills_up_at_each_call(
    store: Store, fill: Any, monkeypatch: pytest.MonkeyPatch, act: str, code: int
) -> None:
    family = fill(store)
    real = getattr(os, act)
    for failing in range(1, 4):
        calls = [0]

        def broken(*args: Any, failing: int = failing, calls: list[int] = calls) -> Any:
            calls[0] += 1
            if calls[0] == failing:
                raise OSError(code, os.strerror(code))
            return real(*args)

        with monkeypatch.context() as patched:
            patched.setattr(os, act, broken)
            full = 0
            for write in (
                lambda: store.add("alice", [MemoryDraft("lost words")]),
                lambda: store.put_traces("alice", [TraceDraft(family.fact, "n", 1, b"lost" * 99, b"r")]),
                lambda: store.complete("alice", family.reply, "lost words"),
            ):
                calls[0] = 0
                before = store.get("alice", family.reply), store.count("alice")
                try:
                    write()
                except BankFullError:
                    full += 1
                    assert (store.get("alice", family.reply), store.count("alice")) == before
            assert full or failing > 2
        assert store.verify(deep=True).ok
    assert store.add("alice", [MemoryDraft("room again")])[0].text == "room again"


def test_a_file_size_limit(bank: Path, in_child: Callable[[Callable[[], object]], int]) -> None:
    """The kernel itself cuts the writes short, of frames and of databases alike."""
    with Store.open(bank) as store:
        store.add("a", [MemoryDraft("before")])

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with Store.open(bank) as store:
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
            _fill_up(store)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            assert store.verify(deep=True).ok
            store.add("a", [MemoryDraft("room again")])

    assert in_child(work) == 0
    with Store.open(bank) as store:
        assert store.verify(deep=True).ok


def test_a_small_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Filled to its last byte a bank stays one, and with the reserve kept it can still erase."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system can't be mounted here")
    try:
        for name, reserve in (("kept", 2 << 20), ("filled", -(1 << 40))):
            monkeypatch.setattr("mnemos.store.disk._RESERVE_BYTES", reserve)
            ballast = disk / "ballast"
            ballast.write_bytes(bytes(512 << 10))
            with Store.open(disk / name) as store:
                store.add("a", [MemoryDraft("before")])
                _fill_up(store)
                assert store.verify(deep=True).ok
                if name == "kept":
                    receipt = store.erase(store.plan_erase(Selector("a", ids=store.recent_ids("a", 20))))
                    assert receipt["memories"] == 20
                    store.add("a", [MemoryDraft("room again")])
            ballast.unlink()
            with Store.open(disk / name) as store:
                assert store.verify(deep=True).ok and store.lexical("a", "before", 1)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def _fill_up(store: Store) -> None:
    """Adds until the disk refused three times; what was refused is not there, what was taken is."""
    kept, full = 1, 0
    for _ in range(400):
        try:
            store.add("a", [MemoryDraft(os.urandom(8000).hex())])
            kept += 1
        except BankError:
            full += 1
            if full == 3:
                break
        assert store.count("a") == kept
    assert full == 3 and kept > 3, (full, kept)
