import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlcipher3.dbapi2

from mnemos.errors import (
    BankError,
    BankKeyError,
    BankReadOnlyError,
    BankUnreadableError,
    BankVersionError,
    NotFoundError,
)
from mnemos.store import catalog_schema, migrations
from mnemos.store.database import Database
from mnemos.store.keys import KeyFile, Passphrase
from mnemos.store.records import MemoryDraft
from mnemos.store.store import Store


def _sql(path: Path, statement: str) -> None:
    connection = sqlcipher3.dbapi2.connect(str(path))
    connection.execute(statement)
    connection.commit()
    connection.close()


def test_the_key_file_is_outside_the_bank_and_for_its_owner_only(bank: Path, key_home: Path) -> None:
    with Store.open(bank) as store:
        key = Path(store.key_location)
        assert key == key_home / f"{store.bank_id}.key"
        assert stat.S_IMODE(key.stat().st_mode) == 0o600 and not key.is_relative_to(bank)
        assert store.encrypted and store.version == catalog_schema.MIGRATIONS[-1].number
    master = bytes.fromhex(key.read_text().strip())
    for path in bank.rglob("*"):
        assert not path.is_file() or master not in path.read_bytes()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666, 0o601])
def test_a_key_file_that_others_may_read_is_refused(bank: Path, mode: int) -> None:
    with Store.open(bank) as store:
        key = Path(store.key_location)
    key.chmod(mode)
    with pytest.raises(BankKeyError, match="chmod 600"):
        Store.open(bank)


def test_a_missing_foreign_or_broken_key_is_refused(bank: Path, tmp_path: Path) -> None:
    with Store.open(bank) as store:
        store.add("a", [MemoryDraft("kept")])
        key = Path(store.key_location)
    good = key.read_bytes()
    key.unlink()
    with pytest.raises(BankKeyError, match="missing"):
        Store.open(bank)
    other = KeyFile(tmp_path / "other.key")
    other.create()
    with pytest.raises(BankKeyError, match="not the key"):
        Store.open(bank, keys=other)
    with pytest.raises(BankKeyError, match="not the key"):
        Store.open(bank, keys=Passphrase("guess"))
    for broken in (b"", b"zz", good[:-9], b"\xff" * 64):
        key.write_bytes(broken)
        key.chmod(0o600)
        with pytest.raises(BankKeyError, match="does not hold a key"):
            Store.open(bank)
    key.write_bytes(good)
    with Store.open(bank) as store:
        assert store.count("a") == 1


def test_a_passphrase_opens_what_it_closed(
    bank: Path, monkeypatch: pytest.MonkeyPatch, key_home: Path
) -> None:
    with Store.open(bank, keys=Passphrase("correct horse")) as store:
        store.add("a", [MemoryDraft("kept")])
        assert store.key_location == "passphrase"
    assert not key_home.exists()
    with pytest.raises(BankKeyError):
        Store.open(bank, keys=Passphrase("correct horsf"))
    monkeypatch.setenv("MNEMOS_PASSPHRASE", "correct horse")
    with Store.open(bank) as store:
        assert store.get("a", store.recent_ids("a", 1)[0]).text == "kept"
    with pytest.raises(BankKeyError):
        Passphrase("")


def test_a_caller_can_plug_in_its_own_keys(bank: Path) -> None:
    class Vault:
        key = b"k" * 32

        def load(self) -> bytes:
            return self.key

        def create(self) -> bytes:
            return self.key

        def describe(self) -> str:
            return "vault"

    with Store.open(bank, keys=Vault()) as store:
        assert store.key_location == "vault"
    Vault.key = b"short"
    with pytest.raises(BankKeyError, match="32"):
        Store.open(bank, keys=Vault())


def test_a_bank_without_encryption_says_so_and_needs_no_key(bank: Path, key_home: Path) -> None:
    Store.open(bank, encrypted=False).close()
    with Store.open(bank) as store:
        assert not store.encrypted and store.key_location == "none (not encrypted)"
    assert not key_home.exists()


def test_what_is_no_bank_is_refused_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        Store.open(tmp_path / "absent", create=False)
    with pytest.raises(NotFoundError):
        Store.open(tmp_path / "absent", read_only=True)
    assert not (tmp_path / "absent").exists()
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(BankUnreadableError, match="is a file"):
        Store.open(file)
    with pytest.raises(BankUnreadableError, match="other files"):
        Store.open(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
    (tmp_path / "empty").mkdir()
    Store.open(tmp_path / "empty").close()


def test_parts_of_a_bank_are_refused(bank: Path) -> None:
    with Store.open(bank) as store:
        store.add("a", [MemoryDraft("x")])
    (bank / "catalog.db").unlink()
    with pytest.raises(BankUnreadableError, match=r"without its catalog\.db"):
        Store.open(bank)
    (bank / "catalog.db").write_bytes(b"this is not a database at all, but long enough to look at" * 100)
    with pytest.raises(BankUnreadableError, match="not a catalog"):
        Store.open(bank)
    (bank / "catalog.db").write_bytes(b"")
    with pytest.raises(BankError):
        Store.open(bank)


def test_a_missing_namespace_database_or_key_file_is_named(bank: Path) -> None:
    with Store.open(bank) as store:
        memory_id = store.add("a", [MemoryDraft("x")])[0].id
        store.put_prefix("f", b"p")
    keys, words = (next((bank / folder).iterdir()) for folder in ("keys", "namespaces"))
    held = keys.read_bytes()
    keys.unlink()
    with Store.open(bank) as store:
        assert not store.verify().ok and store.get("a", memory_id).text == "x"
    keys.write_bytes(held)
    words.unlink()
    with Store.open(bank) as store:
        with pytest.raises(BankUnreadableError, match="missing"):
            store.count("a")
        assert [problem.kind for problem in store.verify().problems] == ["unreadable"]


def test_a_newer_catalog_is_refused(bank: Path) -> None:
    Store.open(bank).close()
    _sql(bank / "catalog.db", "PRAGMA user_version = 99")
    for read_only in (False, True):
        with pytest.raises(BankVersionError, match="99"):
            Store.open(bank, read_only=read_only)


def test_read_only_reads_and_refuses_to_write(bank: Path) -> None:
    with Store.open(bank) as store:
        record = store.add("a", [MemoryDraft("the kettle")])[0]
    before = {path: path.read_bytes() for path in bank.rglob("*") if path.is_file()}
    with Store.open(bank, read_only=True) as store:
        assert store.read_only and store.get("a", record.id) == record
        assert store.lexical("a", "kettle", 1) and store.verify(deep=True).ok
        for act in (
            lambda: store.add("a", [MemoryDraft("no")]),
            lambda: store.set_setting("k", "v"),
            lambda: store.create_session("a"),
            lambda: store.set_flags("a", record.id, hidden=True),
        ):
            with pytest.raises(BankReadOnlyError):
                act()
    after = {path: path.read_bytes() for path in bank.rglob("*") if path.is_file()}
    assert {path: data for path, data in after.items() if path in before} == before


def test_a_directory_that_cannot_be_written(
    bank: Path, in_child: Callable[[Callable[[], object]], int]
) -> None:
    """As another user, since root may write anywhere."""
    if os.geteuid() != 0:
        pytest.skip("needs root to change to another user")
    with Store.open(bank, encrypted=False) as store:
        memory_id = store.add("a", [MemoryDraft("readable")])[0].id
    for path in [bank, *bank.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    for parent in bank.parents:
        if parent.is_relative_to(Path("/tmp")) and parent != Path("/tmp"):
            parent.chmod(0o755)

    def as_nobody() -> None:
        os.setgid(65534)
        os.setuid(65534)
        with pytest.raises(BankReadOnlyError, match="read-only"):
            Store.open(bank)
        with Store.open(bank, read_only=True) as store:
            assert store.get("a", memory_id).text == "readable" and store.lexical("a", "readable", 1)
            assert store.verify(deep=True).ok
        with pytest.raises(BankReadOnlyError):
            Store.open(bank.parent / "new")

    assert in_child(as_nobody) == 0


def test_a_closed_store_says_so(bank: Path) -> None:
    store = Store.open(bank)
    store.close()
    store.close()
    with pytest.raises(BankUnreadableError, match="closed"):
        store.count("a")


def test_migrations_are_listed_without_being_run_and_are_all_or_nothing(
    bank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(bank) as store:
        store.add("a", [MemoryDraft("kept")])

    def second(connection: object) -> None:
        connection.exec_driver_sql("CREATE TABLE extra (a)")  # type: ignore[attr-defined]

    def third(connection: object) -> None:
        connection.exec_driver_sql("CREATE TABLE extra (a)")  # type: ignore[attr-defined]

    newest = catalog_schema.MIGRATIONS[-1].number
    steps = (*catalog_schema.MIGRATIONS, migrations.Migration(newest + 1, "extra table", second))
    broken = (*steps, migrations.Migration(newest + 2, "fails", third))
    database = Database(bank / "catalog.db")
    try:
        assert [step.name for step in migrations.pending(database, broken)] == ["extra table", "fails"]
        assert migrations.version(database) == newest
        with pytest.raises(Exception, match="already exists"):
            migrations.upgrade(database, broken)
        assert migrations.version(database) == newest
        assert (bank / "catalog.db.before-upgrade").exists()
    finally:
        database.close()
    with Store.open(bank) as store:
        assert store.count("a") == 1
    assert not (bank / "catalog.db.before-upgrade").exists()
    monkeypatch.setattr("mnemos.store.opening.catalog_schema.MIGRATIONS", steps)
    with pytest.raises(BankReadOnlyError, match="older format"):
        Store.open(bank, read_only=True)
    with Store.open(bank) as store:
        assert store.version == newest + 1 and store.count("a") == 1
    assert not (bank / "catalog.db.before-upgrade").exists()


def test_the_migrated_catalog_has_the_columns_that_the_code_names(bank: Path) -> None:
    Store.open(bank).close()
    connection = sqlcipher3.dbapi2.connect(str(bank / "catalog.db"))
    try:
        for table in catalog_schema.metadata.sorted_tables:
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table.name})")]
            assert columns == [column.name for column in table.columns], table.name
    finally:
        connection.close()


def test_importing_the_store_is_light() -> None:
    code = (
        "import sys, time; t = time.process_time(); import mnemos.store.store; "
        "used = time.process_time() - t; "
        "heavy = {'torch', 'numpy', 'faiss', 'textual', 'rich', 'sqlalchemy.orm'} & set(sys.modules); "
        "assert not heavy, heavy; assert used < 1.5, used"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
