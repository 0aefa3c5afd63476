"""Ctrl+C in the middle of a write: before the commit nothing is kept, after it nothing is lost."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mnemos.store.database import Database
from mnemos.store.records import MemoryDraft, TraceDraft
from mnemos.store.store import Store


@contextmanager
def interrupted(database: Database, *, after_commit: bool) -> Iterator[None]:
    """The next write transaction of `database` ends in a KeyboardInterrupt, before or after its commit."""
    real = database.write
    fired = False

    @contextmanager
    def write() -> Iterator[Any]:
        nonlocal fired
        with real() as connection:
            yield connection
            if not after_commit and not fired:
                fired = True
                raise KeyboardInterrupt
        if after_commit and not fired:
            fired = True
            raise KeyboardInterrupt

    database.write = write  # type: ignore[method-assign]
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
        assert fired
    finally:
        database.write = real  # type: ignore[method-assign]


@pytest.mark.parametrize("after_commit", [True, False])
def test_an_interrupted_add_is_whole_or_absent(tmp_path: Path, after_commit: bool) -> None:
    with Store.open(tmp_path / "bank") as store:
        store.add("a", [MemoryDraft("first")])
        with interrupted(store._core.catalog, after_commit=after_commit):
            store.add("a", [MemoryDraft("second")])
        store.add("a", [MemoryDraft("third")])
        assert store.verify(deep=True).problems == ()
    with Store.open(tmp_path / "bank") as store:
        texts = [record.text for record in store.list("a", newest_first=False)]
        assert texts == (["first", "second", "third"] if after_commit else ["first", "third"])
        assert store.verify(deep=True).problems == ()


@pytest.mark.parametrize("after_commit", [True, False])
def test_an_interrupted_reply_and_trace_keep_the_memory(tmp_path: Path, after_commit: bool) -> None:
    with Store.open(tmp_path / "bank") as store:
        (record,) = store.add("a", [MemoryDraft("a question", kind="exchange", status="open")])
        with interrupted(store._core.catalog, after_commit=after_commit):
            store.complete("a", record.id, "a reply", "complete", [])
        if not after_commit:
            store.complete("a", record.id, "a reply", "complete", [])
        trace = TraceDraft(record.id, "f", 3, b"kv", b"route")
        with interrupted(store._core.catalog, after_commit=after_commit):
            store.put_traces("a", [trace])
        assert store.get("a", record.id).reply == "a reply"
        assert store.verify(deep=True).problems == ()
        if after_commit:
            assert store.get_kv("a", record.id) == b"kv"
