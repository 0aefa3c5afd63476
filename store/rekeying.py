"""Giving a bank another master key. No frame is written anew: what hangs on the master is wrapped again.

In order: the new key is durable; one transaction of the catalog wraps everything under it; the write-ahead
log is truncated; the old key is destroyed. After a crash at any point the bank opens with the one key or the
other, whichever the catalog stands at, and the next open for writing takes the steps that are left.

Namespace keys, and all that hangs on them, stay as they are: whoever had the old master key and a copy of the
bank in hand has them.
"""

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, delete, update

from mnemos.errors import BankKeyError, BankLockedError, UsageError
from mnemos.store import catalog, catalog_schema
from mnemos.store.core import NAME, NAMESPACE_KEY, Core
from mnemos.store.crypto import KEY_BYTES, Box, InvalidTag, lookup_tag, subkey
from mnemos.store.disk import fsync_dir, zero_and_unlink
from mnemos.store.keys import Binding, KeyFile, KeyProvider, bound, check_outside, kind_of
from mnemos.store.opening import CHECK
from mnemos.store.receipts import note

STEPS = ("new key", "catalog", "log", "old key")
_SEALED = {"check": CHECK, "bank_key": b"mnemos/bank/key", "signing_key": b"mnemos/bank/signing"}
_PENDING = "rekeyed"  # in the catalog from the commit until the old key is gone
_PENDING_BOX = b"mnemos/bank/rekeyed"
_SALT_BYTES = 16
_WAIT_MS = 5000
OnStep = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Rekeyed:
    """What a rekey did."""

    key_location: str  # of the new key, for people
    destroyed: str | None  # the file of the old key, gone now; None where there was none
    kept: str | None  # where the old key is still to be found
    pending: bool = False  # a reader is in the way: the old key goes at the next open for writing


def rekey(
    core: Core, new_keys: KeyProvider | None, keep_old: Path | None = None, on_step: OnStep | None = None
) -> Rekeyed:
    """Puts the bank under a new master key: of `new_keys`, or, without, a new one in the same key file.

    Raises UsageError for what can't be done, BankKeyError for a new key that can't be used.
    """
    with core.writing():
        if not core.encrypted or core.provider is None:
            raise UsageError(f"The bank at {core.path} is not encrypted, so it has no key to change.")
        if not finish(core):
            raise BankLockedError(
                f"Another process is reading {core.path}, so the rekey before this one is not finished yet. "
                "Close it and try again."
            )
        old = core.provider
        if new_keys is None and not isinstance(old, KeyFile):
            raise UsageError(f"The bank's key comes from: {old.describe()}. Say what the new one comes from.")
        salt = secrets.token_bytes(_SALT_BYTES)
        provider = bound(new_keys or old, Binding(core.bank_id, None, salt))
        check_outside(core.path, provider)
        old_master = _load_old(core, old)
        kept = None if keep_old is None else _keep(core, old_master, keep_old)
        master = _new_master(provider, old)
        if len(master) != KEY_BYTES:
            raise BankKeyError(f"The key from {provider.describe()} is {len(master)} bytes long, not 32.")
        if master == old_master:
            raise UsageError(f"The key from {provider.describe()} is the one that the bank has now.")
        _tell(on_step, "new key")
        _wrap_anew(core, old, provider, master, salt)
        _tell(on_step, "catalog")
        is_done = finish(core, on_step)
    destroyed = str(old.path) if isinstance(old, KeyFile) else None
    return Rekeyed(provider.describe(), destroyed, None if kept is None else str(kept), pending=not is_done)


def finish(core: Core, on_step: OnStep | None = None) -> bool:
    """Cuts the log and destroys the old key of a rekey that is committed; False when a reader is in the way.

    The caller holds the writer's lock.
    """
    with core.catalog.read() as connection:
        sealed = catalog.get_meta(connection, _PENDING)
    if sealed is None:
        return True
    old = json.loads(core.master_box.open(sealed, _PENDING_BOX))["old"]
    if not core.catalog.truncate_wal(_WAIT_MS):
        return False
    _tell(on_step, "log")
    provider = core.provider
    if isinstance(provider, KeyFile) and old == str(provider.path.resolve()):
        provider.adopt_successor()
    elif old is not None:
        zero_and_unlink(Path(old))
        if Path(old).parent.is_dir():
            fsync_dir(Path(old).parent)
    _tell(on_step, "old key")
    table = catalog_schema.meta
    with core.catalog.write() as connection:
        connection.execute(delete(table).where(table.c.key == _PENDING))
    core.catalog.truncate_wal()
    return True


def finish_at_open(core: Core) -> None:
    """`finish`, unless another process writes at this moment: the next open does it then."""
    with core.catalog.read() as connection:
        if catalog.get_meta(connection, _PENDING) is None:
            return
    try:
        with core.lock.without_waiting():
            core.keep_up()
            finish(core)
    except BankLockedError:
        return


def _load_old(core: Core, old: KeyProvider) -> bytes:
    """The master key in force. Raises BankKeyError when the provider has another one by now."""
    master = old.load()
    with core.catalog.read() as connection:
        check = catalog.get_meta(connection, "check") or b""
    try:
        core.boxes_of(master)[0].open(check, CHECK)
    except InvalidTag:
        raise BankKeyError(f"The key from {old.describe()} is no longer the bank's. Open it again.") from None
    return master


def _keep(core: Core, master: bytes, place: Path) -> Path:
    file = KeyFile(place.absolute())
    check_outside(core.path, file)
    if file.path.exists():
        raise UsageError(f"{file.path} exists already; name a new file to keep the old key in.")
    if not file.path.parent.is_dir():
        raise UsageError(f"{file.path.parent} is no directory; make it, or keep the old key elsewhere.")
    file.write(master)
    return file.path


def _new_master(provider: KeyProvider, old: KeyProvider) -> bytes:
    """The new key, durable where it will be looked for."""
    if not isinstance(provider, KeyFile) or not isinstance(old, KeyFile):
        return provider.create()
    if provider.path.resolve() != old.path.resolve():
        return provider.create()
    zero_and_unlink(old.successor.path)  # of a rekey that never came to its commit
    return old.successor.create()


def _wrap_anew(core: Core, old: KeyProvider, provider: KeyProvider, master: bytes, salt: bytes) -> None:
    box, names = core.boxes_of(master)
    lookup_key = subkey(master, "lookup")
    old_file = str(old.path.resolve()) if isinstance(old, KeyFile) else None
    pending = json.dumps({"old": old_file}).encode("utf-8")
    if isinstance(provider, KeyFile) and isinstance(old, KeyFile):
        same = provider.path.resolve() == old.path.resolve()
        provider = old if same else provider
    with core.catalog.write() as connection:
        for key, context in _SEALED.items():
            held = catalog.get_meta(connection, key)
            if held is not None:
                catalog.set_meta(connection, key, box.seal(core.master_box.open(held, context), context))
        for row in catalog.live_namespaces(connection):
            _wrap_namespace(core, connection, row, box, names, lookup_key)
        catalog.set_meta(connection, "lock", kind_of(provider).encode("ascii"))
        catalog.set_meta(connection, "salt", salt)
        catalog.set_meta(connection, _PENDING, box.seal(pending, _PENDING_BOX))
        note(connection, "rekey", f"{kind_of(old)}-{kind_of(provider)}")
        check = catalog.get_meta(connection, "check")
    core.use_master(master)
    core.provider, core.check, core.key_location = provider, check or b"", provider.describe()


def _wrap_namespace(
    core: Core, connection: Connection, row: catalog.NamespaceRow, box: Box, names: Box, lookup_key: bytes
) -> None:
    mine = row.id.encode("ascii")
    key = core.master_box.open(row.key_box, NAMESPACE_KEY + mine)
    name = core.name_box.open(row.name_box, NAME + mine)
    table = catalog_schema.namespaces
    connection.execute(
        update(table)
        .where(table.c.id == row.id)
        .values(
            name_tag=lookup_tag(lookup_key, name),
            name_box=names.seal(name, NAME + mine),
            key_box=box.seal(key, NAMESPACE_KEY + mine),
        )
    )


def _tell(on_step: OnStep | None, name: str) -> None:
    if on_step is not None:
        on_step(name)
