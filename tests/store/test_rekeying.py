import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlcipher3.dbapi2

from mnemos.errors import BankKeyError, UsageError
from mnemos.store import keys, rekeying
from mnemos.store.keys import KeyFile, KeyProvider, Passphrase, default_keys
from mnemos.store.receipts import verify_receipt
from mnemos.store.records import MemoryDraft, Selector
from mnemos.store.store import Store

KilledAtEachPoint = Callable[[Callable[[], Callable[[], object]], Callable[[int], None]], int]


@pytest.fixture(autouse=True)
def quick_scrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stretching a passphrase takes long by design; these tests do it hundreds of times."""
    monkeypatch.setattr(keys, "_SCRYPT_N", 1 << 4)


@pytest.fixture
def bank(fast_disk: Path) -> Path:
    return fast_disk / "bank"


def boxes(bank: Path) -> list[bytes]:
    """Everything that is wrapped under the master key."""
    connection = sqlcipher3.dbapi2.connect(f"file:{bank / 'catalog.db'}?mode=ro", uri=True)
    found = connection.execute("SELECT value FROM meta WHERE key IN ('check', 'bank_key', 'signing_key')")
    held = [row[0] for row in found]
    for row in connection.execute("SELECT name_tag, name_box, key_box FROM namespaces"):
        held += row
    connection.close()
    return held


def files_hold(bank: Path, values: list[bytes]) -> bool:
    data = b"".join(path.read_bytes() for path in bank.rglob("*") if path.is_file())
    return any(value in data for value in values)


def test_everything_hangs_on_the_new_key_and_no_frame_moves(bank: Path, fill: Any, key_home: Path) -> None:
    with Store.open(bank) as store:
        family = fill(store)
        fill(store, "bob")
        receipt = store.erase(store.plan_erase(Selector("alice", ids=[family.other])))
        store.reclaim()
        key = Path(store.key_location)
    old_key, old_boxes = key.read_bytes(), boxes(bank)
    assert len(old_boxes) == 9 and files_hold(bank, old_boxes)
    segment = (bank / "segments" / "0001.seg").read_bytes()
    told: list[str] = []
    with Store.open(bank) as store:
        public = store.public_key()
        done = store.rekey(on_step=told.append)
        assert (done.key_location, done.destroyed, done.kept, done.pending) == (
            str(key),
            str(key),
            None,
            False,
        )
        store.add("carol", [MemoryDraft("after")])  # goes on with the new key
        assert store.public_key() == public
    assert told == list(rekeying.STEPS)
    assert key.read_bytes() != old_key and [path.name for path in key_home.iterdir()] == [key.name]
    assert not files_hold(bank, old_boxes)
    assert (bank / "segments" / "0001.seg").read_bytes()[: len(segment)] == segment
    with Store.open(bank) as store:
        assert store.namespaces() == ["alice", "bob", "carol"]
        assert store.get_kv("alice", family.fact) == b"kv" * 3000
        assert verify_receipt(receipt, store.public_key())
        assert [line["action"] for line in store.audit()] == ["erase", "erased", "rekey"]
        assert store.verify(deep=True).ok
    key.write_bytes(old_key)
    with pytest.raises(BankKeyError, match="not the key"):
        Store.open(bank)


def test_a_copy_made_before_cannot_be_opened_once_the_old_key_is_gone(bank: Path, tmp_path: Path) -> None:
    with Store.open(bank) as store:
        store.add("a", [MemoryDraft("kept")])
    copy = tmp_path / "copy"
    shutil.copytree(bank, copy)
    Store.open(copy).close()
    with Store.open(bank) as store:
        store.rekey()
    with pytest.raises(BankKeyError, match="not the key"):
        Store.open(copy)


def test_the_old_key_can_be_kept_and_opens_the_copy(bank: Path, tmp_path: Path) -> None:
    with Store.open(bank) as store:
        store.add("a", [MemoryDraft("kept")])
    copy, kept = tmp_path / "copy", tmp_path / "old.key"
    shutil.copytree(bank, copy)
    with Store.open(bank) as store:
        assert store.rekey(keep_old=kept).kept == str(kept)
    assert kept.stat().st_mode & 0o777 == 0o600
    with Store.open(copy, keys=KeyFile(kept)) as store:
        assert store.count("a") == 1
    with Store.open(bank) as store, pytest.raises(UsageError, match="exists already"):
        store.rekey(keep_old=kept)
    for inside in (bank / "old.key", bank / "keys" / "old.key"):
        with Store.open(bank) as store, pytest.raises(BankKeyError, match="inside the bank"):
            store.rekey(keep_old=inside)


class Vault:
    """As a key-management service would have it."""

    def __init__(self, key: bytes) -> None:
        self.key = key

    def load(self) -> bytes:
        return self.key

    create = load

    def describe(self) -> str:
        return "vault"


def test_from_each_kind_of_key_to_each(bank: Path, tmp_path: Path) -> None:
    ways: list[KeyProvider] = [
        KeyFile(tmp_path / "one.key"),
        Passphrase("correct horse"),
        Passphrase("battery staple"),
        Vault(b"v" * 32),
        KeyFile(tmp_path / "two.key"),
        Vault(b"w" * 32),
        Passphrase("correct horse"),
        KeyFile(tmp_path / "three.key"),
        KeyFile(tmp_path / "four.key"),
    ]
    with Store.open(bank, keys=ways[0]) as store:
        store.add("a", [MemoryDraft("kept")])
    for old, new in itertools.pairwise(ways):
        with Store.open(bank, keys=old) as store:
            store.rekey(new)
            assert store.count("a") == 1
        with pytest.raises(BankKeyError):
            Store.open(bank, keys=old)
        with Store.open(bank, keys=new) as store:
            assert [record.text for record in store.list("a")] == ["kept"]
    assert [path.name for path in tmp_path.glob("*.key*")] == ["four.key"]


def test_the_same_passphrase_gives_another_key(bank: Path, tmp_path: Path) -> None:
    words = Passphrase("correct horse")
    with Store.open(bank, keys=words) as store:
        store.add("a", [MemoryDraft("kept")])
        before = boxes(bank)
        store.rekey(words)
    assert not files_hold(bank, before)
    with Store.open(bank, keys=words) as store:
        assert store.count("a") == 1


def test_the_default_key_goes_with_what_the_bank_is_locked_by(
    bank: Path, key_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(bank) as store:
        file = Path(store.key_location)
        monkeypatch.setenv("MNEMOS_PASSPHRASE", "of some other bank")
        store.rekey(Passphrase("correct horse"))
    assert not file.exists()
    with pytest.raises(BankKeyError, match="not the key"):
        Store.open(bank)
    monkeypatch.delenv("MNEMOS_PASSPHRASE")
    with pytest.raises(BankKeyError, match="MNEMOS_PASSPHRASE"):
        Store.open(bank)
    with Store.open(bank, keys=default_keys(lambda: "correct horse")) as store:
        store.rekey(KeyFile(file))
    monkeypatch.setenv("MNEMOS_PASSPHRASE", "of some other bank")
    with Store.open(bank) as store:  # it is locked by a file, which the passphrase does not change
        assert store.key_location == str(file)


def test_a_bank_of_the_version_before_is_locked_as_it_was(
    bank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNEMOS_PASSPHRASE", "correct horse")
    for locked in (None, Passphrase("correct horse")):
        Store.open(bank, keys=locked).close()
        connection = sqlcipher3.dbapi2.connect(str(bank / "catalog.db"))
        connection.execute("DELETE FROM meta WHERE key IN ('lock', 'salt')")
        connection.commit()
        connection.close()
        with Store.open(bank) as store:
            assert store.lock_kind == "passphrase"
            store.rekey(Passphrase("battery staple"))
        with Store.open(bank, keys=Passphrase("battery staple")) as store:
            assert store.lock_kind == "passphrase"
        shutil.rmtree(bank)


def test_what_cannot_be_done_is_refused_and_changes_nothing(bank: Path, tmp_path: Path) -> None:
    with Store.open(bank) as store:
        key = Path(store.key_location)
        before = boxes(bank)
        for bad, error in (
            (Vault(b"short"), BankKeyError),
            (Vault(bytes.fromhex(key.read_text().strip())), UsageError),
            (KeyFile(bank / "inside.key"), BankKeyError),
        ):
            with pytest.raises(error):
                store.rekey(bad)
        with pytest.raises(UsageError, match="no directory"):
            store.rekey(keep_old=tmp_path / "absent" / "old.key")
        assert boxes(bank) == before
    with Store.open(tmp_path / "plain", encrypted=False) as plain, pytest.raises(UsageError, match="encrypt"):
        plain.rekey()
    locked = tmp_path / "locked"
    with (
        Store.open(locked, keys=Passphrase("correct horse")) as store,
        pytest.raises(UsageError, match="passphrase"),
    ):
        store.rekey()


def test_a_key_file_inside_the_bank_is_refused(bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BankKeyError, match="inside the bank"):
        Store.open(bank, keys=KeyFile(bank / "master.key"))
    monkeypatch.setenv("MNEMOS_KEY_DIR", str(bank / "keys"))
    with pytest.raises(BankKeyError, match="inside the bank"):
        Store.open(bank)
    assert not list(bank.rglob("*.key"))


def test_a_process_that_has_the_bank_open_goes_on(bank: Path, in_child: Any) -> None:
    with Store.open(bank) as store:
        store.add("a", [MemoryDraft("one")])
        store.add("b", [MemoryDraft("two")])
    with Store.open(bank) as store:
        assert store.count("a") == 1

        def rekey() -> None:
            with Store.open(bank) as other:
                assert not other.rekey().pending

        assert in_child(rekey) == 0
        assert store.count("b") == 1 and store.namespaces() == ["a", "b"]
        assert in_child(rekey) == 0
        store.add("b", [MemoryDraft("three")])
        store.add("c", [MemoryDraft("four")])
    with Store.open(bank) as store:
        assert [store.count(name) for name in ("a", "b", "c")] == [1, 2, 1]
        assert store.verify(deep=True).ok


def test_a_process_without_the_new_passphrase_writes_nothing(bank: Path, in_child: Any) -> None:
    old, new = Passphrase("correct horse"), Passphrase("battery staple")
    with Store.open(bank, keys=old) as store:
        store.add("a", [MemoryDraft("one")])

        def rekey() -> None:
            with Store.open(bank, keys=old) as other:
                other.rekey(new)

        assert in_child(rekey) == 0
        with pytest.raises(BankKeyError, match="Open it again"):
            store.add("new", [MemoryDraft("two")])
    with Store.open(bank, keys=new) as store:
        assert store.namespaces() == ["a"] and store.verify(deep=True).ok


def test_a_reader_holds_the_end_up_and_the_next_open_finishes(
    bank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rekeying, "_WAIT_MS", 50)
    with Store.open(bank) as store:
        store.add("a", [MemoryDraft("one")])
        old_boxes = boxes(bank)
        reader = sqlcipher3.dbapi2.connect(f"file:{bank / 'catalog.db'}?mode=ro", uri=True)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM meta").fetchone()
        done = store.rekey()
        assert done.pending and KeyFile(done.key_location).successor.path.exists()
        reader.close()
    with Store.open(bank, read_only=True) as store:
        assert store.count("a") == 1
    with Store.open(bank) as store:
        assert store.count("a") == 1
    assert not KeyFile(done.key_location).successor.path.exists()
    assert not files_hold(bank, old_boxes)


@pytest.mark.parametrize("way", ["file", "to passphrase", "from passphrase", "other file"])
def test_a_rekey_killed_at_each_point_leaves_a_bank_that_opens(
    fast_disk: Path, way: str, killed_at_each_point: KilledAtEachPoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = fast_disk / "keys"
    monkeypatch.setenv("MNEMOS_KEY_DIR", str(home))
    bank = fast_disk / "bank"
    words = Passphrase("correct horse")
    first: KeyProvider | None = words if way == "from passphrase" else None
    with Store.open(bank, keys=first) as store:
        store.add("a", [MemoryDraft("kept")])
        bank_id = store.bank_id
    pristine = fast_disk / "pristine"
    shutil.copytree(bank, pristine)
    keys_then = {path.name: path.read_bytes() for path in home.glob("*")} if home.exists() else {}
    first_boxes = boxes(bank)
    file, other = KeyFile(home / f"{bank_id}.key"), KeyFile(home / "other.key")
    target: dict[str, KeyProvider | None] = {
        "file": None,
        "to passphrase": words,
        "from passphrase": file,
        "other file": other,
    }

    def restore() -> None:
        shutil.rmtree(bank)
        shutil.copytree(pristine, bank)
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        for name, data in keys_then.items():
            KeyFile(home / name).write(bytes.fromhex(data.decode().strip()))

    def prepare() -> Callable[[], object]:
        restore()
        store = Store.open(bank, keys=first)
        return lambda: store.rekey(target[way])

    committed = 0

    def check(point: int) -> None:
        nonlocal committed
        ask = default_keys(lambda: "correct horse")
        if way == "other file":
            with sqlcipher3.dbapi2.connect(str(bank / "catalog.db")) as connection:
                (changed,) = connection.execute("SELECT count(*) FROM meta WHERE key='salt'").fetchone()
            connection.close()
            ask = other if changed else ask
        with Store.open(bank, keys=ask) as store:
            assert [record.text for record in store.list("a")] == ["kept"]
            is_new = boxes(bank) != first_boxes
            assert is_new or not committed, point
            committed += is_new
        if is_new:
            assert not files_hold(bank, first_boxes), point
            assert len(list(home.iterdir())) == (0 if way == "to passphrase" else 1), point
            if way != "from passphrase":
                old = next(iter(keys_then.values())).strip()
                assert not any(old in path.read_bytes() for path in home.iterdir())

    points = killed_at_each_point(prepare, check)
    assert points >= 6 and committed >= 3


def test_an_old_key_is_overwritten_before_it_is_removed(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "a.key")
    file.create()
    fd = os.open(file.path, os.O_RDONLY)
    file.successor.create()
    file.adopt_successor()
    assert os.pread(fd, 100, 0).strip(b"\0") == b""
    os.close(fd)
    assert len(file.load()) == 32 and [path.name for path in tmp_path.iterdir()] == ["a.key"]
