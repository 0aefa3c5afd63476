import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlcipher3.dbapi2

from mnemos.errors import BankError, BankUnreadableError, NotFoundError
from mnemos.store.records import MemoryDraft, Selector
from mnemos.store.store import Store


def _sql(path: Path, *statements: str) -> None:
    connection = sqlcipher3.dbapi2.connect(str(path))
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def _kinds(bank: Path, *, deep: bool = True) -> set[str]:
    with Store.open(bank) as store:
        return {problem.kind for problem in store.verify(deep=deep).problems}


@pytest.fixture
def damaged(bank: Path, fill: Any) -> Any:
    """A filled bank without encryption, closed: (path, its namespace database, ids)."""
    with Store.open(bank, encrypted=False) as store:
        family = fill(store)
    return bank, next((bank / "namespaces").glob("*.db")), family


Damage = Callable[[Path, Path, Any], None]

DAMAGES: dict[str, tuple[Damage, set[str]]] = {
    "a frame's row is lost": (
        lambda bank, words, ids: _sql(
            bank / "catalog.db", f"DELETE FROM frames WHERE owner='{ids.fact}' AND kind=1"
        ),
        {"missing-frame", "orphan-frame"},
    ),
    "a memory's row is lost": (
        lambda bank, words, ids: _sql(bank / "catalog.db", f"DELETE FROM memories WHERE id='{ids.other}'"),
        {"orphan-words", "orphan-frame"},
    ),
    "words are lost": (
        lambda bank, words, ids: _sql(words, f"DELETE FROM memory WHERE id='{ids.other}'"),
        {"missing-words"},
    ),
    "words are changed": (
        lambda bank, words, ids: _sql(words, f"UPDATE memory SET text='other' WHERE id='{ids.other}'"),
        {"words-differ"},
    ),
    "an index entry is lost": (
        lambda bank, words, ids: _sql(
            words,
            "INSERT INTO words(words, rowid, text, reply, title, tags, source) "
            "SELECT 'delete', ordinal, text, reply, title, tags, source FROM memory WHERE ordinal=1",
        ),
        {"index-mismatch"},
    ),
    "a trace's frame is lost": (
        lambda bank, words, ids: _sql(
            bank / "catalog.db", f"UPDATE frames SET live=0 WHERE owner='{ids.fact}' AND kind=2"
        ),
        {"missing-frame"},
    ),
    "the audit log is changed": (
        lambda bank, words, ids: _sql(
            bank / "catalog.db", "INSERT INTO audit VALUES (1, 0, 'api', 'erased', 'x', 1, x'00')"
        ),
        {"audit-broken"},
    ),
    "a segment is cut short": (
        lambda bank, words, ids: (bank / "segments" / "0001.seg").write_bytes(
            (bank / "segments" / "0001.seg").read_bytes()[:-10]
        ),
        {"missing-frame", "short-segment"},
    ),
    "a segment is lost": (
        lambda bank, words, ids: (bank / "segments" / "0001.seg").unlink(),
        {"missing-frame", "missing-segment"},
    ),
    "a segment is another's": (
        lambda bank, words, ids: (bank / "segments" / "0001.seg").write_bytes(
            b"X" * 64 + (bank / "segments" / "0001.seg").read_bytes()[64:]
        ),
        {"corrupt-segment"},
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named(damaged: Any, name: str) -> None:
    damage, expected = DAMAGES[name]
    bank, words, ids = damaged
    assert _kinds(bank) == set()
    damage(bank, words, ids)
    assert _kinds(bank) == expected


def test_what_is_there_though_a_receipt_says_it_is_gone(bank: Path, fill: Any) -> None:
    with Store.open(bank, encrypted=False) as store:
        family = fill(store)
        store.erase(store.plan_erase(Selector("alice", ids=[family.other])))
        kept = store.get("alice", family.fact)
    receipts = sqlcipher3.dbapi2.connect(str(bank / "catalog.db"))
    (body,) = receipts.execute("SELECT body FROM receipts").fetchone()
    forged = json.loads(body) | {"erased": [kept.id]}
    receipts.execute("UPDATE receipts SET body = ?", (json.dumps(forged),))
    receipts.commit()
    receipts.close()
    assert _kinds(bank) == {"present-though-erased", "receipt-forged"}


def test_bytes_that_came_back_are_found(bank: Path) -> None:
    """As a restored segment would: the erased frame lies there again."""
    with Store.open(bank) as store:
        gone = store.add("a", [MemoryDraft("gone"), MemoryDraft("kept")])[0]
        segment = bank / "segments" / "0001.seg"
        before = segment.read_bytes()
        store.erase(store.plan_erase(Selector("a", ids=[gone.id])))
        assert store.verify(deep=True).ok
        segment.write_bytes(before)
        assert [problem.kind for problem in store.verify(deep=True).problems] == ["orphan-frame"]


def test_each_flipped_byte_of_a_frame_is_found_and_never_read(bank: Path, fill: Any) -> None:
    with Store.open(bank) as store:
        family = fill(store)
        store.reclaim()
        segment = bank / "segments" / "0001.seg"
        good = segment.read_bytes()
        for at in range(64, len(good), 37):
            bad = bytearray(good)
            bad[at] ^= 0x41
            assert bad != good
            segment.write_bytes(bytes(bad))
            report = store.verify(deep=True)
            assert not report.ok or not good[at], at
            for memory_id in (family.fact, family.other, family.reply):
                try:
                    assert store.get_kv("alice", memory_id) == b"kv" * 3000
                    assert store.get_route("alice", memory_id) == b"route" * 50
                except BankUnreadableError:
                    continue
        segment.write_bytes(good)
        assert store.verify(deep=True).ok


def test_flipped_bytes_of_a_key_page_are_errors(bank: Path, fill: Any) -> None:
    with Store.open(bank) as store:
        family = fill(store)
    keys = next((bank / "keys").iterdir())
    good = keys.read_bytes()
    for at in range(0, len(good), 7):
        bad = bytearray(good)
        bad[at] ^= 0x41
        keys.write_bytes(bytes(bad))
        with Store.open(bank) as store:
            try:
                assert store.get_kv("alice", family.fact) == b"kv" * 3000
            except (BankUnreadableError, NotFoundError):
                assert {problem.kind for problem in store.verify().problems} == {"undecryptable"}


def test_a_damaged_database_is_reported_not_raised(bank: Path, fill: Any) -> None:
    with Store.open(bank) as store:
        fill(store)
        fill(store, "bob")
    words = sorted((bank / "namespaces").glob("*.db"))[0]
    data = bytearray(words.read_bytes())
    for at in range(4096, len(data), 1000):
        data[at] ^= 0xFF
    words.write_bytes(bytes(data))
    with Store.open(bank) as store:
        report = store.verify(deep=True)
        assert {problem.subject for problem in report.problems} <= {words.stem, words.name} and not report.ok
        for name in ("alice", "bob"):
            try:
                store.list(name)
            except BankError as error:
                assert "verify" in str(error) or "key" in str(error)


def test_progress_is_told(store: Store, fill: Any) -> None:
    fill(store)
    told: list[tuple[int, int]] = []
    assert store.verify(progress=lambda done, total: told.append((done, total))).ok
    assert told[-1] == (11, 11) and told == sorted(told)  # 9 frames, a namespace, a segment
