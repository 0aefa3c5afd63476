"""Reading a large namespace piece by piece, so that nobody waits long for the database meanwhile."""

import json
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Connection, text

from mnemos.store import words
from mnemos.store.selector_sql import resolved
from mnemos.store.words import LIVE, Filter

_WORD_CHARS = 3  # of a text that is looked up in the words' index
_DAY_US = 86_400_000_000


@dataclass(frozen=True, slots=True)
class DayCount:
    """The memories of one kind and one day: `day` counts from 1970-01-01, `low` and `high` are ordinals."""

    day: int
    kind: str
    memories: int
    text_bytes: int
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class TraceCount:
    """Memories by what the model keeps of them: `is_read` when it read them, `has_trace` when it kept KV."""

    is_read: bool
    has_trace: bool
    memories: int
    tokens: int
    trace_bytes: int


@dataclass(frozen=True, slots=True)
class Uses:
    """How many replies that are there a memory was recalled for, and when the last of them was made."""

    count: int
    last: datetime


def ends(connection: Connection) -> tuple[int, int]:
    """The first and the last ordinal; 0 and 0 without rows."""
    row = connection.execute(
        text("SELECT (SELECT min(ordinal) FROM memory), (SELECT max(ordinal) FROM memory)")
    ).one()
    return int(row[0] or 0), int(row[1] or 0)


def prepared(connection: Connection, chosen: Filter) -> Filter:
    """With whole ids for prefixes, once for all pieces. NotFoundError, AmbiguousIdError."""
    return chosen if chosen.where is None else replace(chosen, where=resolved(connection, chosen.where))


def ordinals(connection: Connection, chosen: Filter, low: int, high: int) -> "array[int]":
    """Of the rows in `(low, high]` that fit, newest first."""
    where, bound = words.conditions_of(chosen)
    rows = connection.execute(
        text(
            f"SELECT ordinal FROM memory WHERE ordinal > :low AND ordinal <= :high AND {where} "
            "ORDER BY ordinal DESC"
        ),
        {**bound, "low": low, "high": high},
    )
    return array("q", [row[0] for row in rows])


def hinted(connection: Connection, chosen: Filter, limit: int) -> "array[int]":
    """Some rows that fit a filter by text, by the words' index: at once, but seldom all. Newest first."""
    terms = (chosen.matching or "").split()
    if not terms or max(map(len, terms)) < _WORD_CHARS:
        return array("q")
    longest = max(terms, key=len).replace('"', '""')
    where, bound = words.conditions_of(chosen)
    rows = connection.execute(
        text(
            "SELECT ordinal FROM memory WHERE ordinal IN (SELECT rowid FROM words WHERE words MATCH :query "
            f"ORDER BY rowid DESC LIMIT :limit) AND {where} ORDER BY ordinal DESC"
        ),
        {**bound, "query": f'"{longest}"*', "limit": limit},
    )
    return array("q", [row[0] for row in rows])


def rows_at(connection: Connection, chosen: Iterable[int]) -> dict[int, words.Row]:
    """By ordinal; those that are gone are left out."""
    query = text(
        f"SELECT {words.COLUMNS} FROM memory WHERE ordinal IN (SELECT value FROM json_each(:chosen)) AND "
        f"{LIVE}"
    )
    rows = connection.execute(query, {"chosen": json.dumps(list(chosen))})
    return {row[0]: words.Row(*row) for row in rows}


def days(connection: Connection, low: int, high: int, offset_us: int) -> list[DayCount]:
    """Sums over the rows in `(low, high]`; a day begins at midnight of the zone that is `offset_us` ahead."""
    rows = connection.execute(
        text(
            "SELECT (created_us + :offset) / :day, kind, count(*), sum(text_bytes), min(ordinal), "
            f"max(ordinal) FROM memory WHERE ordinal > :low AND ordinal <= :high AND {LIVE} GROUP BY 1, 2"
        ),
        {"offset": offset_us, "day": _DAY_US, "low": low, "high": high},
    )
    return [DayCount(*row) for row in rows]


def sizes(connection: Connection, low: int, high: int) -> list[tuple[int, str, int]]:
    """(ordinal, id, bytes of text) of the rows in `(low, high]`."""
    query = text(
        f"SELECT ordinal, id, text_bytes FROM memory WHERE ordinal > :low AND ordinal <= :high AND {LIVE}"
    )
    return [(row[0], row[1], row[2]) for row in connection.execute(query, {"low": low, "high": high})]


# The order of the joins is given: the planner would walk through every memory that is not erased.
_REPLIES = (
    "CROSS JOIN memory r ON r.id = u.reply_id WHERE u.rank > 0 AND +r.erased = 0 AND r.born <= committed()"
)


def uses(connection: Connection, ids: Sequence[str]) -> dict[str, Uses]:
    """Of these memories, by id; one that no reply was made with is left out."""
    query = text(
        "SELECT u.memory_id, count(*), max(r.created_us) FROM json_each(:ids) wanted "
        f"CROSS JOIN use u ON u.memory_id = wanted.value {_REPLIES} GROUP BY u.memory_id"
    )
    rows = connection.execute(query, {"ids": json.dumps(list(ids))})
    return {row[0]: Uses(row[1], words.from_us(row[2])) for row in rows}


def use_counts(connection: Connection) -> dict[int, int]:
    """By ordinal, of every memory that a reply was made with."""
    query = text(
        "SELECT m.ordinal, count(*) FROM use u CROSS JOIN memory m ON m.id = u.memory_id "
        f"{_REPLIES} GROUP BY u.memory_id"
    )
    return {row[0]: row[1] for row in connection.execute(query)}


# -- the catalog's side


def last_row(connection: Connection) -> int:
    """The highest row number of the catalog's memories."""
    return int(connection.execute(text("SELECT coalesce(max(rowid), 0) FROM memories")).scalar_one())


def traces(connection: Connection, namespace_id: str, low: int, high: int) -> list[TraceCount]:
    """Sums over the catalog's rows in `(low, high]`, for one namespace."""
    rows = connection.execute(
        text(
            "SELECT trace_fingerprint IS NOT NULL, kv_bytes > 0, count(*), sum(tokens), sum(trace_bytes) "
            "FROM memories WHERE rowid > :low AND rowid <= :high AND +namespace_id = :namespace GROUP BY 1, 2"
        ),
        {"low": low, "high": high, "namespace": namespace_id},
    )
    return [TraceCount(bool(row[0]), bool(row[1]), *row[2:]) for row in rows]


def trace_sizes(connection: Connection, namespace_id: str, low: int, high: int) -> dict[str, int]:
    """Bytes of the traces of the catalog's rows in `(low, high]`, by memory id, where there are any."""
    rows = connection.execute(
        text(
            "SELECT id, trace_bytes FROM memories WHERE rowid > :low AND rowid <= :high AND "
            "+namespace_id = :namespace AND trace_bytes > 0"
        ),
        {"low": low, "high": high, "namespace": namespace_id},
    )
    return {row[0]: row[1] for row in rows}
