"""Writing a namespace's database anew, page by page, after something of it was erased.

Where rows were moved from one page to another, SQLite leaves copies of them in the unused middle of the old
one, which its secure-delete does not reach when a row is deleted later. Nothing finds such a copy, and in an
encrypted bank it is ciphertext; but it is there. A small database is written anew by each erase. A larger one
waits until the bank is closed, next opened or compacted, and the receipt says `page_copies: due`.
"""

import shutil
from contextlib import suppress

from sqlalchemy import Connection, delete, select

from mnemos.errors import BankFullError, BankLockedError
from mnemos.store import catalog, catalog_schema
from mnemos.store.core import Core, Namespace

AT_ONCE_BYTES = 4 << 20  # some 20 ms a MiB
AT_OPEN_BYTES = 32 << 20
AT_CLOSE_BYTES = 256 << 20  # beyond that, only by compacting
_DUE = "rewrite_due/"


def rewrite_small(core: Core, namespace: Namespace) -> bool:
    """Writes the database anew when that takes a moment. False when it is left to later."""
    size = namespace.database.path.stat().st_size
    if size > AT_ONCE_BYTES or not _has_room(core, size):
        return False
    namespace.database.rewrite()
    return True


def mark_due(connection: Connection, namespace_id: str) -> None:
    catalog.set_meta(connection, _DUE + namespace_id, b"1")


def unmark(connection: Connection, namespace_id: str) -> None:
    table = catalog_schema.meta
    connection.execute(delete(table).where(table.c.key == _DUE + namespace_id))


def due(core: Core) -> list[str]:
    """Ids of namespaces whose database is to be written anew."""
    key = catalog_schema.meta.c.key
    with core.reading(), core.catalog.read() as connection:
        found = connection.execute(select(key).where(key >= _DUE, key < _DUE + "~")).scalars()
        return [name.removeprefix(_DUE) for name in found]


def rewrite_due(core: Core, max_bytes: int | None = None) -> int:
    """Writes anew what is due and no larger than that; how many were. One that a reader holds up, or that
    there is no room for, stays due. The caller need not hold the lock; where another process does, nothing
    is done.
    """
    done = 0
    for namespace_id in due(core):
        with suppress(BankLockedError, BankFullError), core.lock.without_waiting(), core.writing():
            namespace = core.by_id(namespace_id)
            if namespace is not None:
                size = namespace.database.path.stat().st_size
                if (max_bytes is not None and size > max_bytes) or not _has_room(core, size):
                    continue
                namespace.database.rewrite()
                if not namespace.database.truncate_wal():
                    continue
                done += 1
            with core.catalog.write() as connection:
                unmark(connection, namespace_id)
    return done


def _has_room(core: Core, size: int) -> bool:
    return shutil.disk_usage(core.path).free > 4 * size
