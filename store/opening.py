"""Opening a bank, or making one where there is none."""

import os
from pathlib import Path

from mnemos.errors import (
    BankKeyError,
    BankReadOnlyError,
    BankUnreadableError,
    NotFoundError,
)
from mnemos.store import catalog, catalog_schema
from mnemos.store.core import Core
from mnemos.store.crypto import KEY_BYTES, InvalidTag, new_key
from mnemos.store.database import Database, opens
from mnemos.store.disk import check_room, fsync_dir, make_folder, storage_errors
from mnemos.store.ids import new_id
from mnemos.store.keys import Binding, KeyFile, KeyProvider, bound, check_outside, default_keys, kind_of
from mnemos.store.lock import DEFAULT_WAIT_S, WriterLock
from mnemos.store.migrations import pending, upgrade
from mnemos.store.receipts import new_signing_key

FOLDERS = ("segments", "keys", "namespaces")
_OURS = {
    *FOLDERS,
    "index",
    "lock",
    "lock.pid",
    "catalog.db",
    "catalog.db-wal",
    "catalog.db-shm",
    "catalog.db.before-upgrade",
    "verify.state",
    "verify.state.part",
}
CHECK = b"mnemos/bank/check"
_ROOM_BYTES = 1 << 20


def open_core(
    path: Path,
    *,
    keys: KeyProvider | None,
    encrypted: bool,
    read_only: bool,
    create: bool,
    wait_s: float = DEFAULT_WAIT_S,
) -> Core:
    """The open bank at `path`. Raises a BankError that says what is wrong with it."""
    with storage_errors(path):
        is_bank = _look(path)
        if not is_bank and (read_only or not create):
            raise NotFoundError(
                f"There is no bank at {path}. Check the path, or create one by opening it for writing."
            )
        if not read_only:
            _make_folders(path)
        lock = WriterLock(path, wait_s)
        database = Database(path / "catalog.db", read_only=read_only)
        try:
            if not opens(database):
                raise BankUnreadableError(
                    f"{database.path} is not a catalog that can be read. Restore it from a copy."
                )
            if not read_only:
                if not _is_ready(database):
                    with lock:
                        _prepare(path, database, keys or default_keys(), encrypted)
            elif pending(database, catalog_schema.MIGRATIONS):
                raise BankReadOnlyError(
                    f"The bank at {path} is of an older format; open it once for writing to upgrade it."
                )
            return _open(path, database, lock, keys or default_keys(), read_only)
        except BaseException:
            database.close()
            raise


def _look(path: Path) -> bool:
    """Whether a bank is there. Raises when something else is."""
    if path.exists() and not path.is_dir():
        raise BankUnreadableError(f"{path} is a file, not a bank. Give a directory.")
    if not path.exists():
        return False
    files = [path / name for name in ("catalog.db", "catalog.db-wal")]
    if any(file.exists() and file.stat().st_size for file in files):
        return True
    strangers = sorted(entry.name for entry in path.iterdir() if entry.name not in _OURS)
    if strangers:
        raise BankUnreadableError(
            f"{path} is a directory with other files in it, not a bank. Give an empty or a new one."
        )
    left = [folder for folder in FOLDERS if (path / folder).is_dir() and any((path / folder).iterdir())]
    if left:
        raise BankUnreadableError(
            f"{path} holds parts of a bank ({', '.join(left)}) without its catalog.db. Restore the whole "
            "bank from a copy."
        )
    return False


def _make_folders(path: Path) -> None:
    make_folder(path)
    for folder in FOLDERS:
        make_folder(path / folder)
    if not os.access(path, os.W_OK | os.X_OK):
        raise BankReadOnlyError(f"{path} can't be written. Make it writable, or open the bank read-only.")


def _is_ready(database: Database) -> bool:
    if pending(database, catalog_schema.MIGRATIONS):
        return False
    with database.read() as connection:
        return catalog.get_meta(connection, "bank_id") is not None


def _prepare(path: Path, database: Database, keys: KeyProvider, encrypted: bool) -> None:
    """Makes or upgrades the catalog; all of it or nothing."""
    for folder in (path, path.parent):
        fsync_dir(folder)  # whoever made them may have been killed before this
    if pending(database, catalog_schema.MIGRATIONS):
        upgrade(database, catalog_schema.MIGRATIONS)
    with database.read() as connection:
        if catalog.get_meta(connection, "bank_id") is not None:
            return
    check_room(path, _ROOM_BYTES)
    bank_id = new_id()
    master = bytes(32)
    kind = b""
    if encrypted:
        provider = bound(keys, Binding(bank_id))
        check_outside(path, provider)
        master = provider.create()
        kind = kind_of(provider).encode("ascii")
    core = Core(path, database, WriterLock(path), bank_id=bank_id, encrypted=encrypted, read_only=False)
    core.use_master(master)
    with database.write() as connection:
        catalog.set_meta(connection, "encrypted", b"1" if encrypted else b"0")
        catalog.set_meta(connection, "check", core.master_box.seal(bank_id.encode("ascii"), CHECK))
        catalog.set_meta(connection, "lock", kind)
        catalog.set_meta(connection, "bank_key", core.master_box.seal(new_key(), b"mnemos/bank/key"))
        catalog.set_meta(
            connection, "signing_key", core.master_box.seal(new_signing_key(), b"mnemos/bank/signing")
        )
        catalog.set_meta(connection, "bank_id", bank_id.encode("ascii"))


def _open(path: Path, database: Database, lock: WriterLock, keys: KeyProvider, read_only: bool) -> Core:
    with database.read() as connection:
        bank_id = catalog.get_meta(connection, "bank_id")
        is_encrypted = catalog.get_meta(connection, "encrypted") == b"1"
        check = catalog.get_meta(connection, "check")
    if bank_id is None or check is None:
        raise BankUnreadableError(
            f"The bank at {path} was never finished. Open it once for writing, or remove it."
        )
    core = Core(
        path, database, lock, bank_id=bank_id.decode("ascii"), encrypted=is_encrypted, read_only=read_only
    )
    if is_encrypted:
        unlock(core, keys)
        core.relock = lambda: unlock(core, core.provider or keys)
    return core


def unlock(core: Core, keys: KeyProvider) -> None:
    """Gives the open bank its master key. Raises BankKeyError when it is not the right one."""
    with core.catalog.read() as connection:
        check = catalog.get_meta(connection, "check") or b""
        kind = (catalog.get_meta(connection, "lock") or b"").decode("ascii")
        salt = catalog.get_meta(connection, "salt") or b""
    provider = bound(keys, Binding(core.bank_id, kind or None, salt))  # type: ignore[arg-type]
    check_outside(core.path, provider)
    try:
        _use(core, provider, check)
    except BankKeyError:
        # A rekey that was cut off after its commit left the key it had committed to beside the old one.
        if not isinstance(provider, KeyFile) or not provider.successor.path.exists():
            raise
        _use(core, provider.successor, check)
    core.provider, core.check, core.key_location = provider, check, provider.describe()


def _use(core: Core, provider: KeyProvider, check: bytes) -> None:
    master = provider.load()
    if len(master) != KEY_BYTES:
        raise BankKeyError(f"The key from {provider.describe()} is {len(master)} bytes long; it must be 32.")
    try:
        known = core.boxes_of(master)[0].open(check, CHECK) == core.bank_id.encode("ascii")
    except InvalidTag:
        known = False
    if not known:
        raise BankKeyError(
            f"The key from {provider.describe()} is not the key of the bank at {core.path}. Give the right "
            "passphrase, or put the right key file back from your backup."
        )
    core.use_master(master)
