"""Tags that are changed after the fact: in the row, in the words' index, and in the frame of the words."""

from pathlib import Path

import pytest

from mnemos.errors import InvalidTextError, NotFoundError
from mnemos.store.payload import unpack_text
from mnemos.store.reading import read_frame
from mnemos.store.records import MemoryDraft
from mnemos.store.store import Store


def test_tags_take_the_place_of_the_former_ones(either_store: Store) -> None:
    store = either_store
    record, other = store.add("a", [MemoryDraft("Clara is a nurse.", tags=("old",)), MemoryDraft("Other.")])
    changed = store.set_tags("a", record.id[:8], ["work", "people", "work"])
    assert changed.tags == ("work", "people") and changed.text == record.text
    assert [found.id for found in store.list("a", tags=["work"])] == [record.id]
    assert store.list("a", tags=["old"]) == [] and store.get("a", other.id).tags == ()
    assert [found for found, _ in store.lexical("a", "people", 5)] == [record.id]
    row, _ = unpack_text(read_frame(store._core, store._core.get("a"), record.id, "text"), record.id)
    assert row.tags == '["work", "people"]'
    assert store.verify(deep=True).ok


def test_tags_outlive_the_process(bank: Path) -> None:
    with Store.open(bank) as store:
        (record,) = store.add("a", [MemoryDraft("Clara is a nurse.")])
        store.set_tags("a", record.id, ["x"])
        store.set_tags("a", record.id, [])
        store.set_tags("a", record.id, ["kept"])
    with Store.open(bank) as store:
        assert store.get("a", record.id).tags == ("kept",)


def test_wrong_tags_and_ids_change_nothing(store: Store) -> None:
    (record,) = store.add("a", [MemoryDraft("Clara is a nurse.", tags=("old",))])
    with pytest.raises(InvalidTextError):
        store.set_tags("a", record.id, ["x" * 5000])
    with pytest.raises(NotFoundError):
        store.set_tags("a", "0000", ["x"])
    assert store.get("a", record.id).tags == ("old",)
