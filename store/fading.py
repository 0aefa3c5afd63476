"""Fading: a namespace whose KV outgrows its budget lets go of some of it, and of nothing else.

A vivid memory has a KV frame, a faint one only words and routing keys. What was neither made nor recalled for
a reply for longest fades first; pinned memories and those that the caller spares don't. When a memory was
last used follows from the provenance that is there, so that what was erased leaves no mark. The budget is a
number in the `meta` table of the namespace's database.

Under the writer's lock one transaction of the catalog marks the frames as dead and their memories as faint;
then the bytes are zeroed and given back. After a crash in between, the next open does the rest.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, text

from mnemos.errors import UsageError
from mnemos.store import browsing, catalog, words
from mnemos.store.core import Core, Namespace
from mnemos.store.database import Database
from mnemos.store.recovery import clear_dead_frames
from mnemos.store.words import Filter, to_us

_KEY = "kv_budget_bytes"
_LARGEST = 1 << 62
_LEFT = 15 / 16  # of the budget, once something faded: not each new memory costs a look at all of them


@dataclass(frozen=True, slots=True)
class Faded:
    """What faded, and the bytes of KV that were given back."""

    ids: tuple[str, ...] = ()
    bytes: int = 0


def get_budget(database: Database) -> int | None:
    """Bytes of KV that the namespace may keep; None for no limit."""
    rows = database.rows("SELECT value FROM meta WHERE key = ?", (_KEY,))
    return int(rows[0][0]) if rows else None


def set_budget(connection: Connection, budget_bytes: int | None) -> None:
    """UsageError unless it is a number of 0 or more, or None."""
    if budget_bytes is None:
        connection.execute(text("DELETE FROM meta WHERE key = :key"), {"key": _KEY})
        return
    if not 0 <= budget_bytes < _LARGEST:
        raise UsageError(f"a budget is a number of bytes, 0 or more, or none; not {budget_bytes}")
    connection.execute(
        text("INSERT INTO meta VALUES (:key, :value) ON CONFLICT (key) DO UPDATE SET value = :value"),
        {"key": _KEY, "value": budget_bytes},
    )


def vivid_bytes(connection: Connection, namespace_id: str) -> int:
    """Bytes of the KV frames of a namespace, from the catalog."""
    query = text("SELECT coalesce(sum(kv_bytes), 0) FROM memories WHERE namespace_id = :id AND kv_bytes > 0")
    return int(connection.execute(query, {"id": namespace_id}).scalar_one())


def counts(connection: Connection, namespace_id: str | None) -> tuple[int, int, int]:
    """Vivid memories, faint ones, and bytes of KV; of the whole bank without a namespace."""
    chosen = "" if namespace_id is None else "AND namespace_id = :id"
    query = text(
        "SELECT coalesce(sum(kv_bytes > 0), 0), coalesce(sum(kv_bytes = 0), 0), coalesce(sum(kv_bytes), 0) "
        f"FROM memories WHERE trace_fingerprint IS NOT NULL {chosen}"
    )
    row = connection.execute(query, {} if namespace_id is None else {"id": namespace_id}).one()
    return int(row[0]), int(row[1]), int(row[2])


def vivid(connection: Connection, namespace_id: str) -> dict[str, int]:
    """Bytes of KV by memory id, of those that are vivid; from the catalog."""
    query = text("SELECT id, kv_bytes FROM memories WHERE namespace_id = :id AND kv_bytes > 0")
    return {row[0]: row[1] for row in connection.execute(query, {"id": namespace_id})}


def fade(
    core: Core, namespace: Namespace, *, budget_bytes: int | None = None, spare: Collection[str] = ()
) -> Faded:
    """Lets KV fade until the budget holds: the namespace's own unless one is given. `spare` stay vivid.

    Nothing fades without a budget. BankLockedError, BankReadOnlyError.
    """
    if not _is_over(core, namespace, budget_bytes):
        return Faded()
    with core.writing():
        budget = get_budget(namespace.database) if budget_bytes is None else budget_bytes
        with core.catalog.read() as connection:
            held = vivid(connection, namespace.id)
        if budget is None or sum(held.values()) <= budget:
            return Faded()
        chosen: list[str] = []
        left = sum(held.values())
        for memory_id in order(namespace, held, spare):
            if left <= budget * _LEFT:
                break
            chosen.append(memory_id)
            left -= held[memory_id]
        _release(core, chosen)
        clear_dead_frames(core)
        return Faded(tuple(chosen), sum(held[memory_id] for memory_id in chosen))


def order(namespace: Namespace, ids: Collection[str], spare: Collection[str] = ()) -> list[str]:
    """Those of the memories that may fade, the first one first."""
    now = catalog.now_us()
    with namespace.database.read() as connection:
        rows = words.select_rows(connection, Filter(ids=[each for each in ids if each not in spare]))
        used = browsing.uses(connection, [row.id for row in rows])
    touched: list[tuple[int, int, int, str]] = []
    for row in rows:
        if row.pinned:
            continue
        uses = used.get(row.id)
        last = row.created_us if uses is None else max(row.created_us, to_us(uses.last))
        # What is dated in the future is as old as what was made just now.
        touched.append((min(last, now), 0 if uses is None else uses.count, row.ordinal, row.id))
    return [memory_id for _, _, _, memory_id in sorted(touched)]


def _is_over(core: Core, namespace: Namespace, budget_bytes: int | None) -> bool:
    """The cheap question after every write, without the lock."""
    budget = get_budget(namespace.database) if budget_bytes is None else budget_bytes
    if budget is None:
        return False
    with core.catalog.read() as connection:
        return vivid_bytes(connection, namespace.id) > budget


def _release(core: Core, ids: Sequence[str]) -> None:
    """One transaction: the KV frames are dead, and their memories faint."""
    statement = text(
        "UPDATE memories SET trace_bytes = trace_bytes - kv_bytes, kv_bytes = 0 WHERE id IN :ids"
    ).bindparams(bindparam("ids", expanding=True))
    with core.catalog.write() as connection:
        for part in catalog.chunks(ids):
            catalog.retire_frames(connection, part, ("kv",))
            connection.execute(statement, {"ids": part})
