"""The vector index: exact while small, near enough when large, up with the bank, and without what was
erased.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.memory.random_vectors import with_vectors

from mnemos import MemoryBank
from mnemos.attention.models import LanguageModel
from mnemos.memory import router, vector_index, vectors_held
from mnemos.memory.vectors_held import Codes, HeldVectors
from mnemos.store.records import MemoryDraft

DIMS = 32


def drawn(count: int, seed: int = 0) -> Codes:
    return np.random.default_rng(seed).integers(-100, 100, (count, DIMS)).astype(np.int8)


def by_hand(vectors: dict[str, Codes], query: Codes, count: int) -> list[str]:
    best = {each: int((codes.astype(int) @ query.astype(int)).max()) for each, codes in vectors.items()}
    return sorted(best, key=lambda each: -best[each])[:count]


def filled(count: int) -> tuple[HeldVectors, dict[str, Codes]]:
    held = HeldVectors(drawn(16, seed=9))
    vectors = {f"m{number}": drawn(1 + number % 3, seed=number) for number in range(count)}
    held.add([*vectors, "without"], vectors)
    return held, vectors


@pytest.mark.parametrize("count", [1, 2, 300])
def test_the_nearest_are_those_of_every_product(count: int) -> None:
    held, vectors = filled(count)
    query = drawn(1, seed=500)[0]
    assert [*held.nearest(query, 5)] == by_hand(vectors, query, 5)
    assert HeldVectors(drawn(4)).nearest(query, 5) == {}


def test_what_is_added_removed_and_replaced_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    for flat in (10_000, 20):
        monkeypatch.setattr(vectors_held, "FLAT_VECTORS", flat)
        monkeypatch.setattr(vectors_held, "_PROBES", 16)  # every list: exact
        held, vectors = filled(60)
        query = drawn(1, seed=501)[0]
        assert [*held.nearest(query, 8)] == by_hand(vectors, query, 8)
        for gone in by_hand(vectors, query, 3):
            held.remove([gone, "unknown"])
            del vectors[gone]
        assert [*held.nearest(query, 8)] == by_hand(vectors, query, 8)
        more = {"new": query[None].copy(), "m5": drawn(2, seed=77)}
        held.add(list(more), more)
        vectors |= more
        assert [*held.nearest(query, 8)] == by_hand(vectors, query, 8)
        assert len(held) == sum(map(len, vectors.values()))


def test_equal_ones_are_all_there_or_none_of_them() -> None:
    held = HeldVectors(drawn(16, seed=9))
    query = drawn(1, seed=3)[0]
    twins = {f"twin{number}": query[None].copy() for number in range(6)}
    held.add(["best", *twins], {"best": np.full((1, DIMS), 0, np.int8), **twins})
    assert {*held.nearest(query, 2)} == {*twins}
    many = {f"more{number}": query[None].copy() for number in range(30)}
    held.add(list(many), many)
    assert held.nearest(query, 2) == {}, "one can't say which of 36 equal ones"


def test_lists_take_over_above_a_size_and_go_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors_held, "FLAT_VECTORS", 50)
    held, vectors = filled(40)
    query = vectors["m7"][0]
    assert [*held.nearest(query, 1)] == ["m7"] and type(held._index).__name__ == "IndexIVFScalarQuantizer"
    held.remove([f"m{number}" for number in range(15, 40)])
    assert [*held.nearest(query, 1)] == ["m7"] and type(held._index).__name__ == "IndexIDMap"


def test_what_is_removed_is_overwritten_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors_held, "FLAT_VECTORS", 50)
    held, vectors = filled(60)
    held.nearest(drawn(1)[0], 1)
    codes = held._codes
    lists = held._index.invlists
    sizes = [lists.list_size(number) for number in range(lists.nlist)]
    held.remove(list(vectors))
    assert not codes.any() and sum(sizes) > 0
    assert all(lists.list_size(number) == 0 for number in range(lists.nlist)) and held._index.ntotal == 0


# -- with a bank


@pytest.fixture
def model(tiny_model: LanguageModel) -> LanguageModel:
    return with_vectors(tiny_model)


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[MemoryBank]:
    with MemoryBank.open(tmp_path / "bank") as opened:
        yield opened


def remember(bank: MemoryBank, count: int, start: int = 0) -> list[str]:
    drafts = [
        MemoryDraft(f"The {number} th kettle is {'blue' * (number % 5)}.") for number in range(start, count)
    ]
    return [memory.id for memory in bank.remember_many(drafts)]


def shard_files(path: Path) -> list[Path]:
    return sorted(path.rglob("*.shard"))


def test_an_old_memory_without_a_shared_word_becomes_a_candidate(
    bank: MemoryBank, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router, "RECENT_CANDIDATES", 3)
    ids = remember(bank, 12)
    plain = bank.search("xylophone?", model=model, limit=20)
    assert len(plain) == 12, "all of so few are near"
    assert {"vector", "mass"} <= set(plain[0].signals)
    monkeypatch.setattr(router, "VECTOR_CANDIDATES", 4)
    some = bank.search("xylophone?", model=model, limit=20)
    old = {found.memory.id for found in some} - set(ids[-3:])
    assert 1 <= len(old) <= 4
    bank.hide(next(iter(old)))
    assert next(iter(old)) not in {
        found.memory.id for found in bank.search("xylophone?", model=model, limit=20)
    }


def test_vectors_are_kept_in_shards_and_taken_from_them(
    tmp_path: Path, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_index, "_SAVE_MEMORIES", 8)
    path = tmp_path / "bank"
    with MemoryBank.open(path) as bank:
        remember(bank, 10)
        before = [
            (found.memory.id, found.score) for found in bank.search("blue kettle", model=model, limit=20)
        ]
        assert len(shard_files(path)) == 1
        remember(bank, 13, start=10)
        bank.search("blue kettle", model=model)
        held = bank.recaller(model).vectors
        assert held is not None and len(held.catch_up("default").unsaved) == 3
        held.save("default")
    with MemoryBank.open(path) as bank:
        index = bank.recaller(model).vectors
        assert index is not None
        read: list[str] = []
        real = index._read

        def watched(namespace: str, ids: "list[str]") -> object:
            read.extend(ids)
            return real(namespace, ids)

        monkeypatch.setattr(index, "_read", watched)
        assert len(index.catch_up("default")) == 13 and read == []
    for shard in shard_files(path):
        shard.write_bytes(b"nothing of the kind")
    with MemoryBank.open(path) as bank:
        found = bank.search("blue kettle", model=model, limit=20)
        assert {each.memory.id for each in found} >= {memory_id for memory_id, _ in before}
        index = bank.recaller(model).vectors
        assert index is not None and len(index.catch_up("default")) == 13
        assert bank.verify().ok, "what couldn't be read was made again"


def test_after_an_erase_a_search_is_that_of_a_bank_that_never_held_it(
    tmp_path: Path, model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_index, "_SAVE_MEMORIES", 4)
    monkeypatch.setattr(vectors_held, "FLAT_VECTORS", 9)
    monkeypatch.setattr(router, "RECENT_CANDIDATES", 2)
    monkeypatch.setattr(router, "VECTOR_CANDIDATES", 5)
    texts = [
        f"Note {number} of {'sun' if number % 2 else 'rain'} and {number * 37 % 11}." for number in range(14)
    ]
    doomed = {2, 5, 13}

    def looks(bank: MemoryBank) -> list[object]:
        return [
            [
                (found.memory.text, found.score, dict(found.signals))
                for found in bank.search(query, model=model, limit=9)
            ]
            for query in ("what weather", "sun", "7")
        ]

    with MemoryBank.open(tmp_path / "one") as bank, MemoryBank.open(tmp_path / "two") as never:
        for number, text in enumerate(texts):
            memory = bank.remember(text)
            looks(bank)
            if number not in doomed:
                never.remember(text)
        for memory in bank.list():
            if texts.index(memory.text) in doomed:
                bank.forget(bank.plan_forget(ids=[memory.id]))
        assert looks(bank) == looks(never)
        assert bank.verify(deep=True).ok
    with MemoryBank.open(tmp_path / "one") as bank, MemoryBank.open(tmp_path / "two") as never:
        assert looks(bank) == looks(never)


def test_another_process_erasing_is_noticed(tmp_path: Path, model: LanguageModel) -> None:
    path = tmp_path / "bank"
    with MemoryBank.open(path) as bank, MemoryBank.open(path) as other:
        ids = remember(bank, 6)
        bank.search("kettle", model=model)
        other.forget(other.plan_forget(ids=[ids[2]]))
        assert ids[2] not in {found.memory.id for found in bank.search("blue", model=model, limit=20)}
        index = bank.recaller(model).vectors
        assert index is not None and ids[2] not in index.catch_up("default").seen


def test_a_bank_without_vectors_goes_on_and_reencoding_gives_them(
    bank: MemoryBank, tiny_model: LanguageModel, model: LanguageModel
) -> None:
    remember(bank, 5)
    bank.search("kettle", model=tiny_model)
    found = bank.search("kettle", model=model, limit=9)
    assert len(found) == 5 and {each.signals["vector"] for each in found} == {0.0}
    index = bank.recaller(model).vectors
    assert index is not None and len(index.catch_up("default")) == 0
    bank.reencode(model)
    found = bank.search("kettle", model=model, limit=9)
    assert len({each.signals["vector"] for each in found}) > 1
    other = bank.search("kettle", model=with_vectors(tiny_model, seed=5), limit=9)
    assert {each.signals["vector"] for each in other} == {0.0}, "vectors of another form are none"
