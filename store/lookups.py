"""What nearly every call asks first, each in one plain statement that goes straight to the driver."""

import json
from collections.abc import Sequence

from mnemos.store import words
from mnemos.store.catalog import CatalogMemory, NamespaceRow
from mnemos.store.database import Database

_NAMESPACE = "SELECT id, name_box, key_box, batch, state FROM namespaces WHERE "
_MEMORY = (
    "SELECT id, namespace_id, page_id, slot, is_open, trace_fingerprint, tokens, trace_bytes, "
    "kv_bytes FROM memories WHERE id "
)
_AMONG = "IN (SELECT value FROM json_each(?))"
_ROW = f"SELECT {words.COLUMNS} FROM memory WHERE id = ? AND {words.LIVE}"
_ROWS = f"SELECT {words.COLUMNS} FROM memory WHERE id {_AMONG} AND {words.LIVE}"
_PENDING = "SELECT namespace_id, id, rowid FROM memories WHERE is_open = 0 AND trace_fingerprint "
_MOST_ALONE = 64  # memories looked up in one plain statement


def find_namespace(catalog: Database, name_tag: bytes) -> NamespaceRow | None:
    """The live namespace of that tag."""
    rows = catalog.rows(f"{_NAMESPACE} name_tag = ? AND state = 'live'", (name_tag,))
    return NamespaceRow(*rows[0]) if rows else None


def namespace_by_id(catalog: Database, namespace_id: str) -> NamespaceRow | None:
    rows = catalog.rows(f"{_NAMESPACE} id = ?", (namespace_id,))
    return NamespaceRow(*rows[0]) if rows else None


def setting(catalog: Database, key: str) -> str | None:
    rows = catalog.rows("SELECT value FROM settings WHERE key = ?", (key,))
    return rows[0][0] if rows else None


def meta(catalog: Database, key: str) -> bytes | None:
    rows = catalog.rows("SELECT value FROM meta WHERE key = ?", (key,))
    return rows[0][0] if rows else None


def erase_epoch(catalog: Database) -> int:
    return int(meta(catalog, "erase_epoch") or b"0")


def open_memories(catalog: Database) -> dict[str, list[str]]:
    """Ids of memories that wait for their reply, by namespace id."""
    found: dict[str, list[str]] = {}
    for namespace_id, memory_id in catalog.rows("SELECT namespace_id, id FROM memories WHERE is_open = 1"):
        found.setdefault(namespace_id, []).append(memory_id)
    return found


def pending_traces(catalog: Database, namespace_id: str | None, fingerprint: str) -> list[tuple[str, str]]:
    """(namespace id, memory id) of finished memories without a trace of that model, oldest first;
    those that an erase wrote anew come last."""
    of_one = "" if namespace_id is None else " AND namespace_id = :namespace"
    each = (f"{_PENDING} {lacks}{of_one}" for lacks in ("IS NULL", "< :fingerprint", "> :fingerprint"))
    found = catalog.rows(" UNION ALL ".join(each), {"fingerprint": fingerprint, "namespace": namespace_id})
    return [(row[0], row[1]) for row in sorted(found, key=lambda row: int(row[2]))]


def is_few(ids: Sequence[str]) -> bool:
    """Whether so many are looked up here."""
    return len(ids) <= _MOST_ALONE


def memories(catalog: Database, ids: Sequence[str]) -> dict[str, CatalogMemory]:
    """What the catalog knows of a few memories."""
    found: dict[str, CatalogMemory] = {}
    for row in catalog.rows(_MEMORY + _AMONG, (json.dumps(list(ids)),)):
        memory_id, namespace_id, page_id, slot, is_open, *trace = row
        found[memory_id] = CatalogMemory(memory_id, namespace_id, page_id, slot, bool(is_open), *trace)
    return found


def row(database: Database, memory_id: str) -> words.Row | None:
    """A live memory's words by its whole id."""
    rows = database.rows(_ROW, (memory_id,))
    return words.Row(*rows[0]) if rows else None


def rows(database: Database, ids: Sequence[str]) -> dict[str, words.Row]:
    """Live memories' words by their whole ids."""
    found = (words.Row(*each) for each in database.rows(_ROWS, (json.dumps(list(ids)),)))
    return {each.id: each for each in found}
