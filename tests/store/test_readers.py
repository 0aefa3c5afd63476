"""Another process that reads while a bank is erased from sees it as it was before or as it is after."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mnemos.errors import ErasePendingError, NotFoundError
from mnemos.store.records import MemoryDraft, Selector, TraceDraft, UseRecord
from mnemos.store.store import Store

ROUNDS = 8


def look(store: Store) -> dict[str, object]:
    """One glance by each way in; each is one observation, so each is compared by itself."""
    records = store.list("a", include_hidden=True)
    ids = [record.id for record in records]
    seen: dict[str, object] = {
        "list": sorted((record.text, record.reply) for record in records),
        "search": sorted(store.lexical("a", "canary", 100)),
        "recent": len(store.recent_ids("a", 100)),
        "count": store.count("a"),
    }
    for memory_id, payload in store.get_kvs("a", ids).items():
        assert payload == b"kv" * 500, memory_id
    for memory_id in ids:
        try:
            record = store.get("a", memory_id)
            assert record.text and store.get_route("a", memory_id) == b"route"
            assert all(use.memory_id for use in store.uses_of("a", memory_id))
        except NotFoundError:  # erased since it was listed, or not encoded anew yet
            continue
    return seen


@contextmanager
def readers(bank: Path, count: int, *, read_only: bool) -> Iterator[Callable[[], list[str]]]:
    """Processes that look again and again; called, it stops them and gives what they saw, one JSON a line."""
    pipes: list[tuple[int, int]] = []
    for _ in range(count):
        outlet, inlet = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(outlet)
            _look_for_ever(bank, inlet, read_only)
        os.close(inlet)
        pipes.append((pid, outlet))
    try:
        time.sleep(0.3)

        def stop() -> list[str]:
            lines: list[str] = []
            for pid, outlet in pipes:
                os.kill(pid, signal.SIGTERM)
                with os.fdopen(outlet, encoding="utf-8") as said:
                    lines += [line for line in said if line.endswith("\n")]
                os.waitpid(pid, 0)
            pipes.clear()
            return lines

        yield stop
    finally:
        for pid, outlet in pipes:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(outlet)


def _look_for_ever(bank: Path, inlet: int, read_only: bool) -> None:
    last = ""
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with Store.open(bank, read_only=read_only) as store:
            while True:
                line = json.dumps(look(store), sort_keys=True)
                if line != last:  # a full pipe would hold the reader up
                    os.write(inlet, line.encode() + b"\n")
                last = line
    except BaseException as error:
        os.write(inlet, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode() + b"\n")
    finally:
        os._exit(1)


@pytest.mark.parametrize("encrypted", [True, False], ids=["encrypted", "plain"])
@pytest.mark.parametrize("read_only", [True, False], ids=["read-only", "writable"])
def test_each_look_is_of_before_or_of_after(fast_disk: Path, encrypted: bool, read_only: bool) -> None:
    bank = fast_disk / "bank"
    with Store.open(bank, encrypted=encrypted) as store:
        facts = store.add("a", [MemoryDraft(f"canary fact {number}") for number in range(ROUNDS)])
        asked = store.add("a", [MemoryDraft(f"q{n}", kind="exchange", status="open") for n in range(ROUNDS)])
        for fact, question in zip(facts, asked, strict=True):
            store.complete("a", question.id, "canary reply", uses=[UseRecord(fact.id, 0, 1.0)])
        store.put_traces("a", [TraceDraft(one.id, "m", 1, b"kv" * 500, b"route") for one in (*facts, *asked)])
        states = [json.loads(json.dumps(look(store)))]
        with readers(bank, 2, read_only=read_only) as stop:
            for fact in facts:
                try:
                    store.erase(store.plan_erase(Selector("a", ids=[fact.id])))
                except ErasePendingError:
                    _finish(store)
                states.append(json.loads(json.dumps(look(store))))
            _finish(store)
            seen = [json.loads(line) for line in stop()]
        assert [one["error"] for one in seen if "error" in one] == []
        for one in seen:
            for way, value in one.items():
                assert value in [state[way] for state in states], way
        assert len({json.dumps(one["list"]) for one in seen}) > 2
        assert len(store.receipts()) == ROUNDS and store.verify(deep=True).ok


@pytest.mark.parametrize("encrypted", [True, False], ids=["encrypted", "plain"])
def test_a_memory_is_gone_at_every_step_of_its_erase(fast_disk: Path, encrypted: bool) -> None:
    bank = fast_disk / "bank"
    with Store.open(bank, encrypted=encrypted) as store, Store.open(bank, read_only=True) as reader:
        gone, kept = store.add("a", [MemoryDraft("canary one"), MemoryDraft("canary two")])
        store.put_traces("a", [TraceDraft(one.id, "m", 1, b"kv" * 500, b"route") for one in (gone, kept)])
        assert set(reader.get_kvs("a", [gone.id, kept.id])) == {gone.id, kept.id}
        seen: dict[str, bool] = {}

        def look_again(step: str) -> None:
            found = reader.get_kvs("a", [gone.id, kept.id])
            assert found[kept.id] == b"kv" * 500
            seen[step] = gone.id in found

        store.erase(store.plan_erase(Selector("a", ids=[gone.id])), on_step=look_again)
        assert {"tombstone", "frames", "rows"} <= set(seen)
        assert not seen["frames"] and not seen["rows"] and not seen["check"]
        with pytest.raises(NotFoundError):
            reader.get_kv("a", gone.id)


def _finish(store: Store) -> None:
    """Erases that a reader held up for a moment."""
    for _ in range(50):
        try:
            store.resume()
            return
        except ErasePendingError:
            time.sleep(0.02)
    raise AssertionError("readers that hold no transaction between calls keep an erase from its receipt")


def test_the_erase_of_a_namespace_is_seen_at_once_or_not_yet(fast_disk: Path) -> None:
    bank = fast_disk / "bank"
    with Store.open(bank) as store:
        facts = store.add("a", [MemoryDraft(f"canary fact {number}") for number in range(20)])
        store.put_traces("a", [TraceDraft(one.id, "m", 1, b"kv" * 500, b"route") for one in facts])
        before = json.loads(json.dumps(look(store)))
        with readers(bank, 2, read_only=True) as stop:
            store.erase(store.plan_erase(Selector("a", everything=True)))
            after = json.loads(json.dumps(look(store)))
            time.sleep(0.3)
            seen = [json.loads(line) for line in stop()]
        assert [one["error"] for one in seen if "error" in one] == []
        for one in seen:
            for way, value in one.items():
                assert value in (before[way], after[way]), way
        assert store.verify(deep=True).ok
