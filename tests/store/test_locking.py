import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mnemos.errors import BankLockedError
from mnemos.store.records import MemoryDraft, Selector, TraceDraft
from mnemos.store.store import Store

HOLDER = """
import sys, time
from pathlib import Path
from mnemos.store.lock import WriterLock
with WriterLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(bank: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the writer's lock of a bank with one memory."""
    with Store.open(bank) as store:
        store.add("a", [MemoryDraft("the kettle")])
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(bank)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_writer_waits_then_names_the_first(bank: Path, holder: "subprocess.Popen[str]") -> None:
    with Store.open(bank, lock_wait_s=0.3) as store:
        assert store.lexical("a", "kettle", 1) and store.verify().ok
        start = time.monotonic()
        with pytest.raises(BankLockedError, match=str(holder.pid)):
            store.add("a", [MemoryDraft("no")])
        assert 0.25 < time.monotonic() - start < 3
        assert store.count("a") == 1


def test_the_lock_of_a_dead_process_is_no_hindrance(bank: Path, holder: "subprocess.Popen[str]") -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with Store.open(bank, lock_wait_s=0.5) as store:
        assert store.add("a", [MemoryDraft("yes")])[0].ordinal == 2


def test_a_writer_that_waits_gets_its_turn(bank: Path, holder: "subprocess.Popen[str]") -> None:
    with Store.open(bank, lock_wait_s=5) as store:
        holder.send_signal(signal.SIGKILL)
        assert store.add("a", [MemoryDraft("yes")])[0].ordinal == 2


def test_two_stores_see_each_others_writes_and_erases(bank: Path) -> None:
    with Store.open(bank) as one, Store.open(bank) as two:
        first = one.add("a", [MemoryDraft("the kettle"), MemoryDraft("other")])[0]
        one.put_traces("a", [TraceDraft(first.id, "f", 1, b"kv", b"r")])
        epoch = two.erase_epoch()
        assert two.get_kv("a", first.id) == b"kv" and two.lexical("a", "kettle", 2)
        two.add("a", [MemoryDraft("from two")])
        assert one.count("a") == 3 and one.recent_ids("a", 1) == two.recent_ids("a", 1)
        one.erase(one.plan_erase(Selector("a", ids=[first.id])))
        assert two.erase_epoch() == epoch + 1 and two.lexical("a", "kettle", 2) == []
        assert two.get_routes("a", [first.id]) == {}
        one.erase(one.plan_erase(Selector("a", everything=True)))
        assert two.list("a") == [] and two.namespaces() == []
        two.add("a", [MemoryDraft("anew")])
        assert [record.text for record in one.list("a")] == ["anew"]
        assert one.verify(deep=True).ok and two.verify(deep=True).ok
