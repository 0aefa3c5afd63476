"""Shards of vectors: kept, found again, and without what was erased, whatever happens in between."""

import secrets
from pathlib import Path

import pytest
from sqlalchemy import text

from mnemos.store import shards
from mnemos.store.ids import new_id
from mnemos.store.keys import KeyFile
from mnemos.store.records import MemoryDraft, Selector, TraceDraft
from mnemos.store.shards import MEMORY_VECTORS
from mnemos.store.store import Store

STRIDE = 24


@pytest.fixture
def bank(fast_disk: Path) -> Path:
    return fast_disk / "bank"


def opened(bank: Path, *, encrypted: bool = True) -> Store:
    return Store.open(bank, keys=KeyFile(bank.with_suffix(".key")), encrypted=encrypted)


def filled(store: Store, count: int = 12) -> dict[str, bytes]:
    """Memories, and vectors of some: one to four of each."""
    ids = [record.id for record in store.add("a", [MemoryDraft(f"note {index}") for index in range(count)])]
    vectors = {
        memory_id: secrets.token_bytes(STRIDE * (1 + index % MEMORY_VECTORS))
        for index, memory_id in enumerate(ids)
    }
    assert store.put_vectors("a", "v1", STRIDE, vectors) == count
    return vectors


def held(store: Store, form: str = "v1") -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for shard in store.vector_shards("a", form, STRIDE):
        for at, memory_id in enumerate(shard.ids):
            part = shard.vectors[at * STRIDE : (at + 1) * STRIDE]
            found[memory_id] = found.get(memory_id, b"") + part
    return found


def files(bank: Path) -> list[Path]:
    return sorted((bank / "index").rglob("*.shard"))


def forget(store: Store, *ids: str) -> dict[str, bool]:
    receipt = store.erase(store.plan_erase(Selector("a", ids=list(ids))))
    checks: dict[str, bool] = receipt["checks"]
    return checks


@pytest.mark.parametrize("encrypted", [True, False], ids=["encrypted", "plain"])
def test_what_was_put_is_found_by_another_opening(bank: Path, encrypted: bool) -> None:
    with opened(bank, encrypted=encrypted) as store:
        vectors = filled(store)
    with opened(bank, encrypted=encrypted) as store:
        assert held(store) == vectors
        assert held(store, "v2") == {}
        assert store.verify(deep=True).problems == ()
    everything = b"".join(path.read_bytes() for path in files(bank))
    assert all((data[:STRIDE] in everything) != encrypted for data in vectors.values())


def test_more_are_added_to_what_is_there_and_the_same_ones_replaced(bank: Path) -> None:
    with opened(bank) as store:
        vectors = filled(store)
        more = filled(store, 3)
        again = {next(iter(vectors)): bytes(STRIDE)}
        store.put_vectors("a", "v1", STRIDE, again)
        assert held(store) == vectors | more | again
        assert len(files(bank)) == 1


def test_blocks_are_bounded(bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "BLOCK_MEMORIES", 5)
    with opened(bank) as store:
        vectors = filled(store, 23)
        assert len(files(bank)) in (5, 6)
        assert held(store) == vectors
        before = set(files(bank))
        forget(store, list(vectors)[7])
        assert len(before ^ set(files(bank))) == 2, "one file was written anew"


def test_vectors_of_another_form_take_the_place_of_the_former(bank: Path) -> None:
    with opened(bank) as store:
        vectors = filled(store)
        store.put_vectors("a", "v2", STRIDE, {next(iter(vectors)): bytes(STRIDE)})
        assert held(store) == {} and len(held(store, "v2")) == 1 and len(files(bank)) == 1


def test_what_is_no_vector_is_refused(bank: Path) -> None:
    with opened(bank) as store:
        memory_id = next(iter(filled(store)))
        for wrong in (b"", bytes(STRIDE + 1), bytes(STRIDE * (MEMORY_VECTORS + 1))):
            with pytest.raises(ValueError, match="vectors"):
                store.put_vectors("a", "v1", STRIDE, {memory_id: wrong})


def test_one_that_was_erased_meanwhile_is_left_out(bank: Path) -> None:
    with opened(bank) as store:
        vectors = filled(store)
        gone, *_ = vectors
        forget(store, gone)
        assert store.put_vectors("a", "v1", STRIDE, vectors) == len(vectors) - 1
        assert gone not in held(store)


@pytest.mark.parametrize("encrypted", [True, False], ids=["encrypted", "plain"])
def test_an_erase_leaves_no_byte_of_a_vector_and_no_key_that_opens_one(bank: Path, encrypted: bool) -> None:
    with opened(bank, encrypted=encrypted) as store:
        vectors = filled(store)
        gone, stays, *_ = vectors
        (old,) = files(bank)
        sealed = old.read_bytes()
        namespace = store._core.get("a")
        with namespace.database.read() as connection:
            (row,) = shards.rows(connection)
        checks = forget(store, gone)
        assert checks["no_vectors"]
        assert not old.exists() and sealed not in b"".join(
            path.read_bytes() for path in bank.rglob("*.shard")
        )
        assert held(store) == {memory_id: data for memory_id, data in vectors.items() if memory_id != gone}
        with namespace.database.read() as connection:
            (now,) = shards.rows(connection)
        assert now.id != row.id and (now.key != row.key) == encrypted
        assert store.verify(deep=True).problems == ()
    everything = b"".join(path.read_bytes() for path in bank.rglob("*") if path.is_file())
    assert vectors[gone][:STRIDE] not in everything
    assert (vectors[stays][:STRIDE] in everything) != encrypted


def test_the_last_one_takes_its_shard_along_and_a_namespace_its_folder(bank: Path) -> None:
    with opened(bank) as store:
        vectors = filled(store)
        forget(store, *list(vectors)[1:])
        assert len(held(store)) == 1
        forget(store, next(iter(vectors)))
        assert files(bank) == []
        filled(store)
        receipt = store.erase(store.plan_erase(Selector("a", everything=True)))
        assert receipt["checks"]["no_vectors"] and list((bank / "index").iterdir()) == []


@pytest.mark.parametrize("last", ["intent", "tombstone", "index", "rows"])
def test_an_erase_that_was_cut_off_is_finished_at_the_next_opening(bank: Path, last: str) -> None:
    class Killed(Exception):
        pass

    def kill(step: str) -> None:
        if step == last:
            raise Killed

    store = opened(bank)
    vectors = filled(store)
    gone = next(iter(vectors))
    with pytest.raises(Killed):
        store.erase(store.plan_erase(Selector("a", ids=[gone])), on_step=kill)
    store.close()
    with opened(bank) as store:
        assert [receipt["erased"] for receipt in store.receipts()] == [[gone]]
        assert gone not in held(store) and len(held(store)) == len(vectors) - 1
        assert len(files(bank)) == 1 and store.verify(deep=True).problems == ()


def test_a_file_without_a_row_is_swept_at_the_next_opening(bank: Path) -> None:
    with opened(bank) as store:
        vectors = filled(store)
    (path,) = files(bank)
    left = path.with_name("aaaabbbbccccddddeeeeffff22.shard")
    left.write_bytes(path.read_bytes())
    with opened(bank) as store:
        assert held(store) == vectors
        assert files(bank) == [path]


def test_folders_of_other_programs_are_left_alone(bank: Path) -> None:
    with opened(bank) as store:
        vectors = filled(store)
    (path,) = files(bank)
    for folder in (path.parent, path.parent.parent):  # as a file server keeps them
        (folder / "@eaDir" / "inner").mkdir(parents=True)
        (folder / "@eaDir" / "SYNO@.data").write_bytes(b"theirs")
    with opened(bank) as store:
        assert held(store) == vectors and store.verify(deep=True).problems == ()
        gone = next(iter(vectors))
        assert forget(store, gone)["no_vectors"] and gone not in held(store)
        receipt = store.erase(store.plan_erase(Selector("a", everything=True)))
        assert receipt["checks"]["no_vectors"]
    with opened(bank) as store:
        assert store.verify(deep=True).problems == ()
    left = [each for each in (bank / "index").rglob("*") if each.is_file()]
    assert [each.name for each in left] == ["SYNO@.data"] * 2


@pytest.mark.parametrize("harm", ["flip", "cut", "version", "remove", "folder"])
def test_damage_is_told_by_verify_mended_by_repair_and_no_hindrance(bank: Path, harm: str) -> None:
    with opened(bank) as store:
        vectors = filled(store)
    (path,) = files(bank)
    data = bytearray(path.read_bytes())
    if harm == "flip":
        data[-5] ^= 1
    elif harm == "cut":
        data = data[:40]
    elif harm == "version":
        data[4] = 9
    path.write_bytes(data)
    if harm in ("remove", "folder"):
        path.unlink()
    if harm == "folder":
        path.parent.rmdir()
        (bank / "index").rmdir()
    with opened(bank) as store:
        assert held(store) == {}
        assert [problem.kind for problem in store.verify().problems] == ["corrupt-shard"]
        gone, *rest = vectors
        if harm == "flip":
            assert forget(store, gone)["no_vectors"], "an erase goes on, and takes the damaged shard along"
        else:
            report = store.repair()
            assert [problem.kind for problem in report.repaired] == ["corrupt-shard"]
        assert store.verify(deep=True).problems == ()
        store.put_vectors("a", "v1", STRIDE, {memory_id: vectors[memory_id] for memory_id in rest})
        assert set(held(store)) == set(rest)


def test_verify_finds_what_a_shard_holds_though_it_was_erased(bank: Path) -> None:
    with opened(bank) as store:
        vectors = filled(store)
        namespace = store._core.get("a")
        with namespace.database.read() as connection:
            row = shards.rows(connection)[0]
        kept = files(bank)[0].read_bytes()
        gone = next(iter(vectors))
        forget(store, gone)
        (bank / "index" / namespace.id / f"{row.id}.shard").write_bytes(kept)
        with namespace.database.write() as connection:
            connection.execute(text("DELETE FROM shard"))
            connection.execute(
                text("INSERT INTO shard VALUES (:block, :id, :form, :stride, :entries, :key)"),
                {name: getattr(row, name) for name in ("block", "id", "form", "stride", "entries", "key")},
            )
        kinds = {problem.kind for problem in store.verify().problems}
        assert kinds == {"present-though-erased", "orphan-file"}
        store.repair()
        assert store.verify().problems == () and held(store) == {}


def test_the_mark_tells_what_is_new(bank: Path) -> None:
    with opened(bank) as store:
        ids = list(filled(store, 4))
        assert store.new_routes("a")[1] == []
        for memory_id in ids[:2]:
            store.put_traces("a", [TraceDraft(memory_id, "m", 3, b"kv", b"route")])
        mark, found = store.new_routes("a")
        assert found == ids[:2]
        store.put_traces("a", [TraceDraft(ids[3], "m", 3, b"kv", b"route")])
        assert store.new_routes("a", mark)[1] == [ids[3]]
        assert store.new_routes("b", 0)[1] == []


def test_many_are_placed_by_whole_blocks_as_one_by_one(bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is asked for: neighbours, memories of blocks far apart, erased ones, ids of nobody."""
    monkeypatch.setattr(shards, "BLOCK_MEMORIES", 10)
    monkeypatch.setattr(shards, "_FEW", 3)
    with opened(bank) as store:
        ids = [record.id for record in store.add("a", [MemoryDraft(f"note {at}") for at in range(60)])]
        forget(store, ids[7], ids[30])
        namespace = store._core.get("a")
        for asked in (ids, ids[::9], ids[5:25], [*ids[:12], *ids[40::7], new_id()], [new_id()], []):
            found = []
            for many in (1, 4, 10_000):
                monkeypatch.setattr(shards, "_MANY", many)
                with namespace.database.read() as connection:
                    found.append(list(shards._blocks_of(connection, asked).items()))
            assert found[0] == found[1] == found[2]
            assert [each for each, _ in found[0]] == [
                each for each in asked if each in ids and each not in (ids[7], ids[30])
            ]
