"""A namespace's database made anew from the text frames, and from what can still be read of the old one."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from mnemos.errors import BankError
from mnemos.store import catalog, namespace_schema, words
from mnemos.store.core import Core, Namespace
from mnemos.store.database import Database
from mnemos.store.disk import fsync_dir
from mnemos.store.frames import FrameError, decode_frame
from mnemos.store.migrations import upgrade, version
from mnemos.store.payload import unpack_text
from mnemos.store.records import UseRecord
from mnemos.store.recovery import MENDED, REBUILT, adopt_rebuilt, memory_key
from mnemos.store.words import Filter, Row

_SESSION_NAMES = ("id", "title", "made", "changed", "parent", "at", "closed")  # an older format has fewer
_FRESH_SESSION = {"parent": None, "at": None, "closed": 0}


def is_sound(namespace: Namespace) -> bool:
    """Whether SQLite finds nothing wrong with the database's pages and every row of words can be read."""
    try:
        with namespace.database.read() as connection:
            if connection.execute(text("PRAGMA quick_check(1)")).scalar_one() != "ok":
                return False
            words.select_rows(connection, Filter())
            words.batch(connection)
            connection.execute(text("SELECT count(*) FROM session NOT INDEXED")).scalar_one()
    except SQLAlchemyError:
        return False
    return True


def rebuild_database(core: Core, row: catalog.NamespaceRow) -> tuple[int, int]:
    """Puts a new database in the place of the old one. How many memories the old one still gave, and how many
    of the catalog's it did not.
    """
    core.release(row.id)
    namespace = core.made(row)
    try:
        salvaged, sessions = _salvage(namespace)
        with core.catalog.read() as connection:
            memories = catalog.namespace_memories(connection, row.id)
        path = core.namespace_path(row.id)
        made = path.with_name(path.name + REBUILT)
        fresh = namespace.database_at(made)
        try:
            _fill(core, namespace, fresh, memories, salvaged, sessions)
            fresh.truncate_wal()
        finally:
            fresh.close()
    finally:
        namespace.close()
    made.replace(path.with_name(path.name + MENDED))
    fsync_dir(path.parent)
    adopt_rebuilt(core)  # also at the next open, where a crash comes in between
    return len(memories.keys() & salvaged.keys()), len(memories.keys() - salvaged.keys())


def _salvage(namespace: Namespace) -> tuple[dict[str, Row], list[Any]]:
    """Rows of words and sessions that the old database still gives, from both ends of its tables."""
    found: dict[str, Row] = {}
    sessions: dict[str, Any] = {}
    if not namespace.database.path.exists():
        return {}, []
    names = words.COLUMNS
    for order in ("", " DESC"):
        query = f"SELECT {names} FROM memory NOT INDEXED WHERE +erased = 0 ORDER BY ordinal{order}"
        for row in _readable(namespace.database, query):
            found.setdefault(row[1], Row(*row))
        for row in _readable(namespace.database, f"SELECT * FROM session NOT INDEXED ORDER BY rowid{order}"):
            sessions.setdefault(row[0], tuple(row))
    return found, list(sessions.values())


def _readable(database: Database, query: str) -> Iterator[Any]:
    """Rows up to the first that can't be read."""
    try:
        if not version(database):
            return
        with database.read() as connection:
            yield from connection.execution_options(stream_results=True).execute(text(query))
    except SQLAlchemyError:
        return


def _fill(
    core: Core,
    namespace: Namespace,
    fresh: Database,
    memories: dict[str, catalog.CatalogMemory],
    salvaged: dict[str, Row],
    sessions: list[Any],
) -> None:
    upgrade(fresh, namespace_schema.MIGRATIONS)
    batch = namespace.committed
    rows: list[Row] = []
    uses: dict[str, list[UseRecord]] = {}
    for memory_id, memory in memories.items():
        old = salvaged.pop(memory_id, None)
        try:
            row, made_with = _of_frame(core, namespace, memory)
            uses[memory_id] = made_with
        except (FrameError, BankError):
            if old is None:
                continue
            row = old
        flags = (0, 0) if old is None else (old.pinned, old.hidden)
        rows.append(replace(row, pinned=flags[0], hidden=flags[1], batch=batch, born=batch))
    # Words that the catalog has no row of: the mending that follows gives them one, or clears them.
    rows += [replace(row, batch=batch) for row in salvaged.values() if row.born <= batch]
    with fresh.write() as connection:
        for session in sessions:
            connection.execute(
                text(
                    "INSERT OR IGNORE INTO session VALUES (:id, :title, :made, :changed, :parent, :at, "
                    ":closed)"
                ),
                _FRESH_SESSION | dict(zip(_SESSION_NAMES, session, strict=False)),
            )
        words.insert_rows(connection, _without_clashes(rows))
        named = {row.session_id for row in rows if row.session_id is not None}
        words.touch_sessions(connection, named - {session[0] for session in sessions})
        for memory_id, made_with in uses.items():
            words.set_uses(connection, memory_id, made_with)
        words.set_batch(connection, batch)


def _of_frame(core: Core, namespace: Namespace, memory: catalog.CatalogMemory) -> tuple[Row, list[UseRecord]]:
    """Raises FrameError or BankError where there is none that can be read."""
    with core.catalog.read() as connection:
        frames = catalog.frames_of(connection, [memory.id], "text")
    if not frames:
        raise FrameError("missing-frame", "it has no text frame")
    key = memory_key(core, namespace, memory)
    data = core.segments.read(frames[-1].segment, frames[-1].start, frames[-1].length)
    return unpack_text(decode_frame(data, "text", memory.id, key), memory.id)


def _without_clashes(rows: list[Row]) -> list[Row]:
    """In the order of writing, no place taken twice and no content claimed twice."""
    kept: list[Row] = []
    last = 0
    tags: set[bytes] = set()
    for row in sorted(rows, key=lambda row: row.ordinal):
        tag = None if row.content_tag in tags else row.content_tag
        if tag is not None:
            tags.add(tag)
        last = max(last + 1, row.ordinal)
        kept.append(replace(row, ordinal=last, content_tag=tag))
    return kept
