from dataclasses import replace
from pathlib import Path

import pytest

from mnemos.errors import BankUnreadableError
from mnemos.store.crypto import new_key
from mnemos.store.ids import new_id
from mnemos.store.keypages import PAGE_KEYS, REGION_BYTES, KeyPages, PageRow, Slot


class Book:
    """Key pages, and the rows that a catalog would hold of them."""

    def __init__(self, path: Path) -> None:
        self.pages = KeyPages(path, new_id(), new_key(), read_only=False)
        self.rows: dict[int, PageRow] = {}

    def add(self, count: int) -> list[Slot]:
        slots, changed = self.pages.allocate(list(self.rows.values()), count)
        self.rows.update((row.id, row) for row in changed)
        return slots

    def shred(self, slots: list[Slot]) -> None:
        doomed: dict[int, set[int]] = {}
        for slot in slots:
            doomed.setdefault(slot.page_id, set()).add(slot.number)
        self.rows.update((row.id, row) for row in self.pages.shred(list(self.rows.values()), doomed))
        self.pages.clear(list(self.rows.values()))

    def key(self, slot: Slot) -> bytes | None:
        self.pages.forget()
        return self.pages.key(self.rows[slot.page_id], slot.number)


def test_keys_written_one_by_one_and_in_groups_come_back(tmp_path: Path) -> None:
    book = Book(tmp_path / "a.keys")
    slots = [slot for count in [1] * 700 + [500, 3, 2000] for slot in book.add(count)]
    assert len({slot.key for slot in slots}) == 3203
    assert len({(slot.page_id, slot.number) for slot in slots}) == 3203
    assert all(row.used <= PAGE_KEYS and row.length <= REGION_BYTES for row in book.rows.values())
    assert len({row.region for row in book.rows.values()}) == len(book.rows) == 4
    for slot in slots[::97]:
        assert book.key(slot) == slot.key
    book.pages.close()


def test_a_shredded_key_is_nowhere_and_the_others_stay(tmp_path: Path) -> None:
    book = Book(tmp_path / "a.keys")
    slots = book.add(1500)
    before = dict(book.rows)
    old = (tmp_path / "a.keys").read_bytes()
    doomed, kept = slots[::3], [slot for index, slot in enumerate(slots) if index % 3]
    book.shred(doomed)
    assert [book.key(slot) for slot in doomed] == [None] * len(doomed)
    assert [book.key(slot) for slot in kept] == [slot.key for slot in kept]
    data = (tmp_path / "a.keys").read_bytes()
    for row in before.values():
        assert book.rows[row.id].wrapped != row.wrapped
        at = row.region * REGION_BYTES
        assert data[at : at + row.length] != old[at : at + row.length]
        with pytest.raises(BankUnreadableError):
            book.pages.key(replace(row, used=row.used), 0)
    assert book.add(10)[0].key not in {slot.key for slot in slots}
    book.pages.close()


def test_a_group_that_was_never_recorded_is_written_over(tmp_path: Path) -> None:
    book = Book(tmp_path / "a.keys")
    first = book.add(5)
    book.pages.allocate(list(book.rows.values()), 40)
    second = book.add(3)
    assert [slot.number for slot in second] == [5, 6, 7]
    assert [book.key(slot) for slot in first + second] == [slot.key for slot in first + second]
    book.pages.close()


def test_another_namespace_or_another_key_opens_nothing(tmp_path: Path) -> None:
    book = Book(tmp_path / "a.keys")
    slot = book.add(1)[0]
    stranger = KeyPages(tmp_path / "a.keys", new_id(), new_key(), read_only=True)
    with pytest.raises(BankUnreadableError):
        stranger.key(book.rows[slot.page_id], slot.number)
    book.pages.close()
    stranger.close()
