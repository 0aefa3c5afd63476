"""Many rows leave the word index at once, and it is what it would be had they never been there."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlcipher3.dbapi2
from sqlalchemy import text

from mnemos.store import indexing
from mnemos.store.records import MemoryDraft, Selector
from mnemos.store.store import Store

_COLUMNS = "text, reply, title, tags, source"


def pages(store: Store) -> list[bytes]:
    """The index's own pages, without its list of segments and its sums."""
    with store._core.get("a").database.read() as connection:
        return sorted(connection.execute(text("SELECT block FROM words_data WHERE id > 10")).scalars())


def pages_of_who_never_knew(store: Store) -> list[bytes]:
    """The same, of an index that has seen nothing but the memories that are left, merged once."""
    with store._core.get("a").database.read() as connection:
        rows = connection.execute(text(f"SELECT ordinal, {_COLUMNS} FROM memory ORDER BY ordinal")).all()
    index = sqlcipher3.dbapi2.connect(":memory:", isolation_level=None)
    try:
        index.execute(
            f"CREATE VIRTUAL TABLE words USING fts5({_COLUMNS}, content='', "
            "tokenize='porter unicode61 remove_diacritics 2')"
        )
        for row in rows:
            index.execute(f"INSERT INTO words (rowid, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", tuple(row))
        index.execute("INSERT INTO words (words) VALUES ('optimize')")
        return sorted(row[0] for row in index.execute("SELECT block FROM words_data WHERE id > 10"))
    finally:
        index.close()


def add(store: Store, count: int, group: int, word: str = "word") -> None:
    for start in range(0, count, group):
        numbers = range(start, min(start + group, count))
        drafts = [
            MemoryDraft(f"shared {word}{number:04d}x", tags=["odd" if number % 2 else "even"])
            for number in numbers
        ]
        store.add("a", drafts)


@pytest.fixture
def merges(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Grows with each merge: whether it was enough, without a rebuild."""
    seen: list[bool] = []
    real: Callable[[bytes], bool] = indexing.is_merged

    def watched(structure: bytes) -> bool:
        seen.append(real(structure))
        return seen[-1]

    monkeypatch.setattr(indexing, "is_merged", watched)
    return seen


@pytest.mark.parametrize(("count", "group"), [(401, 401), (400, 40), (490, 7)])
def test_many_erased_leave_the_index_of_a_bank_that_never_held_them(
    either_store: Store, merges: list[bool], count: int, group: int
) -> None:
    store = either_store
    add(store, count, group)
    store.erase(store.plan_erase(Selector("a", tags=["odd"])))
    assert merges == [True]
    assert pages(store) == pages_of_who_never_knew(store)
    assert store.verify(deep=True).ok
    assert len(store.lexical("a", "word0002x", 9)) == 1 and store.lexical("a", "word0001x", 9) == []


def test_an_index_that_was_emptied_and_filled_again(store: Store, merges: list[bool]) -> None:
    add(store, 300, 30, "former")
    store.erase(store.plan_erase(Selector("a", matching="former")))
    assert store.count("a") == 0 and pages(store) == []
    add(store, 450, 15)
    store.erase(store.plan_erase(Selector("a", tags=["odd"])))
    assert len(merges) == 2 and pages(store) == pages_of_who_never_knew(store)
    assert store.verify(deep=True).ok


def test_few_are_taken_out_in_place(store: Store, merges: list[bool]) -> None:
    add(store, 300, 300)
    store.erase(store.plan_erase(Selector("a", matching="word00")))
    assert merges == [] and store.lexical("a", "word0001x", 9) == [] and store.count("a") == 200
    assert store.verify(deep=True).ok


def test_where_a_merge_would_not_do_the_index_is_built_anew(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "is_merged", lambda structure: False)
    add(store, 400, 40)
    store.erase(store.plan_erase(Selector("a", tags=["odd"])))
    assert pages(store) == pages_of_who_never_knew(store) and store.verify(deep=True).ok


def test_merging_again_and_again(store: Store, monkeypatch: pytest.MonkeyPatch, merges: list[bool]) -> None:
    """The index has a bounded number of levels, and every merge takes a new one."""
    monkeypatch.setattr(indexing, "_MANY_ROWS", 1)
    add(store, 4, 2, "stays")
    for number in range(35):
        add(store, 2, 1, f"goes{number}")
        store.erase(store.plan_erase(Selector("a", matching="goes")))
        assert pages(store) == pages_of_who_never_knew(store), number
    assert len(merges) == 35 and store.verify(deep=True).ok


def test_a_removal_taken_back_leaves_the_index_careful(bank: Path) -> None:
    """The option that is off during a merge comes back with the transaction, in this process too."""
    with Store.open(bank, encrypted=False) as store:
        add(store, 400, 40)
        database = store._core.get("a").database
        ids = [record.id for record in store.list("a")]
        with pytest.raises(RuntimeError), database.write() as connection:
            connection.execute(text("UPDATE memory SET erased = 1"))
            indexing.remove_rows(connection, ids[:300])
            raise RuntimeError
        with database.read() as connection:
            option = connection.execute(text("SELECT v FROM words_config WHERE k = 'secure-delete'"))
            assert option.scalar_one() == 1
        before = len(pages(store))
        store.erase(store.plan_erase(Selector("a", ids=ids[:3])))
        # An index that only marks deletions would have a new page with them.
        assert len(pages(store)) <= before and store.verify(deep=True).ok


@pytest.mark.parametrize(
    ("levels", "merged"),
    [([], True), ([0, 0], True), ([0, 1], True), ([1, 0], False), ([1, 1], False), ([0, 2], False)],
)
@pytest.mark.parametrize("is_wide", [True, False])
def test_the_list_of_segments_is_read(levels: list[int], merged: bool, is_wide: bool) -> None:
    segment = [300, 1, 70_000, 0, 0, 0, 0] if is_wide else [300, 1, 70_000]
    held = [[0, count, *segment * count] for count in levels]
    numbers = [len(levels), sum(levels), 1 << 40, *itertools.chain(*held)]
    body = b"".join(_varint(number) for number in numbers)
    assert indexing.is_merged(b"\0\0\0\7" + (b"\xff\0\0\1" if is_wide else b"") + body) is merged


def _varint(number: int) -> bytes:
    parts = [number & 0x7F]
    while number := number >> 7:
        parts.append(number & 0x7F | 0x80)
    return bytes(reversed(parts))
