"""Processes that read while another writes, erases and compacts: what they see is whole, or is gone."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mnemos.store.records import MemoryDraft, Selector, TraceDraft
from mnemos.store.store import Store

READER = """
import json, random, sys
from contextlib import suppress
from pathlib import Path
from mnemos.errors import NotFoundError
from mnemos.store.store import Store
bank, stop = Path(sys.argv[1]), Path(sys.argv[2])
payload = lambda i: random.Random(i).randbytes(600)
seen = rounds = 0
with Store.open(bank, read_only=sys.argv[3] == "read-only") as store:
    print("ready", flush=True)
    while not stop.exists():
        store.erase_epoch()
        for name in ("alice", "bob"):
            with suppress(NotFoundError) if name == "bob" else suppress():  # erased as a whole, now and then
                ids = [record.id for record in store.list(name)]
                for memory_id, kv in store.get_kvs(name, ids).items():
                    assert kv == payload(memory_id)
                    seen += 1
                for memory_id, route in store.get_routes(name, ids).items():
                    assert route == payload(memory_id)[::-1]
                for memory_id, _ in store.lexical(name, "kettle", 50):
                    assert len(memory_id) == 26
        rounds += 1
print(json.dumps([rounds, seen]), flush=True)
"""


@pytest.mark.parametrize("mode", ["read-only", "read-write"])
def test_a_reader_beside_erases(bank: Path, mode: str) -> None:
    """Of single memories, whose key pages and frames move or go, and of whole namespaces with their files."""
    with Store.open(bank) as store:
        store.ensure_namespace("alice")
        stop = bank.parent / "stop"
        command = [sys.executable, "-W", "error", "-c", READER, str(bank), str(stop), mode]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
            assert reader.stdout is not None and reader.stdout.readline() == "ready\n"
            until = time.monotonic() + 3
            erases = 0
            while time.monotonic() < until and reader.poll() is None:
                for name in ("alice", "bob"):
                    drafts = [MemoryDraft(f"the kettle {number}") for number in range(4)]
                    ids = [record.id for record in store.add(name, drafts)]
                    data = {i: random.Random(i).randbytes(600) for i in ids}
                    store.put_traces(name, [TraceDraft(i, "m", 1, data[i], data[i][::-1]) for i in ids])
                    store.erase(store.plan_erase(Selector(name, ids=ids[:2])))
                    erases += 1
                store.erase(store.plan_erase(Selector("bob", everything=True)))
                store.compact(min_dead_share=0.01)
            stop.touch()
            rounds, seen = json.loads(reader.stdout.readline())
            assert reader.wait() == 0 and rounds >= 3 and seen >= 4 and erases >= 2
        assert store.verify(deep=True).ok and store.count("alice") == erases
