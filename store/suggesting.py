"""What a shell may complete: ids, sessions and tags that begin with what was typed."""

import json

from mnemos.store import words
from mnemos.store.database import Database

_TAGGED = 5000  # of the newest memories, whose tags are known without reading a large namespace whole
_LATER = "~"  # sorts behind every character of an id


def memories(database: Database, prefix: str, limit: int) -> list[tuple[str, str]]:
    """(id, text) of live memories, the newest first where nothing was typed."""
    if not prefix:
        order = f"{words.LIVE} ORDER BY ordinal DESC LIMIT ?"
        rows = database.rows(f"SELECT id, text FROM memory WHERE {order}", (limit,))
    else:
        some = f"id >= ? AND id < ? AND {words.LIVE} LIMIT ?"
        rows = database.rows(f"SELECT id, text FROM memory WHERE {some}", (prefix, prefix + _LATER, limit))
    return [(row[0], row[1]) for row in rows]


def sessions(database: Database, prefix: str, limit: int) -> list[tuple[str, str]]:
    """(id, title) of sessions, the one changed last first."""
    rows = database.rows(
        "SELECT id, coalesce(title, '') FROM session WHERE is_closed = 0 AND id >= ? AND id < ? "
        "ORDER BY updated_us DESC LIMIT ?",
        (prefix, prefix + _LATER, limit),
    )
    return [(row[0], row[1]) for row in rows]


def tags(database: Database, prefix: str, limit: int) -> list[tuple[str, str]]:
    """(tag, nothing) of the newest memories, sorted."""
    rows = database.rows(
        f"SELECT DISTINCT tags FROM (SELECT tags FROM memory WHERE {words.LIVE} ORDER BY ordinal DESC "
        "LIMIT ?) WHERE tags <> '[]'",
        (_TAGGED,),
    )
    found = {tag for row in rows for tag in json.loads(row[0]) if tag.startswith(prefix)}
    return [(tag, "") for tag in sorted(found)[:limit]]
