"""How much a namespace keeps, and which of its memories are beyond that.

The limits are numbers in the `meta` table of the namespace's database, encrypted with it. Erasing can't be
taken back, so a doubt about the clock is decided for keeping: only the clock of the moment counts, a memory
dated in the future has no age, and limits of size go by the order of writing, which no clock can change.
Pinned memories and those that wait for a reply are counted and never taken.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection, text

from mnemos.errors import UsageError
from mnemos.store import words
from mnemos.store.words import LIVE

_KEYS = {"max_age": "max_age_us", "max_bytes": "max_bytes", "max_memories": "max_memories"}
_MAY_GO = "pinned = 0 AND status <> 'open'"
_LARGEST = 1 << 62


@dataclass(frozen=True, slots=True)
class Retention:
    """Limits of a namespace; None where there is none."""

    max_age: timedelta | None = None  # since `created_at`
    max_bytes: int | None = None  # of texts and traces
    max_memories: int | None = None

    @property
    def is_set(self) -> bool:
        return self != Retention()


def check_retention(limits: Retention) -> None:
    """UsageError for limits that keep nothing, which is what forgetting is for."""
    for name in _KEYS:
        value = getattr(limits, name)
        number = value // timedelta(microseconds=1) if isinstance(value, timedelta) else value
        if number is not None and not 0 < number < _LARGEST:
            raise UsageError(f"{name} must be more than nothing; to keep nothing, forget the namespace.")


def get_retention(connection: Connection) -> Retention:
    rows = connection.execute(text("SELECT key, value FROM meta"))
    held = {row[0]: int(row[1]) for row in rows}
    age_us = held.get(_KEYS["max_age"])
    return Retention(
        None if age_us is None else timedelta(microseconds=age_us),
        held.get(_KEYS["max_bytes"]),
        held.get(_KEYS["max_memories"]),
    )


def set_retention(connection: Connection, limits: Retention) -> None:
    """Sets every limit; one that is None is taken away. An index by age exists while age counts."""
    check_retention(limits)
    for name, key in _KEYS.items():
        value = getattr(limits, name)
        if value is None:
            connection.execute(text("DELETE FROM meta WHERE key = :key"), {"key": key})
            continue
        number = value // timedelta(microseconds=1) if isinstance(value, timedelta) else value
        connection.execute(
            text("INSERT INTO meta VALUES (:key, :value) ON CONFLICT (key) DO UPDATE SET value = :value"),
            {"key": key, "value": number},
        )
    if limits.max_age is None:
        connection.exec_driver_sql("DROP INDEX IF EXISTS memory_by_age")
    else:
        connection.exec_driver_sql("CREATE INDEX IF NOT EXISTS memory_by_age ON memory (created_us)")


def past_ids(
    connection: Connection, limits: Retention, trace_bytes: Mapping[str, int], now_us: int
) -> list[str]:
    """Ids of what has expired, then of what is beyond the limits: too old, then those written first.

    `trace_bytes` of each memory; it may be empty where no limit of bytes is set.
    """
    is_over = "expires_us IS NOT NULL AND expires_us <= :now"
    query = text(f"SELECT id FROM memory WHERE {is_over} AND {LIVE} ORDER BY ordinal")
    past = list(connection.execute(query, {"now": now_us}).scalars())
    if limits.max_age is not None:
        query = text(
            f"SELECT id FROM memory WHERE created_us < :cut AND {_MAY_GO} AND {LIVE} ORDER BY ordinal"
        )
        past += connection.execute(query, {"cut": _cut(limits.max_age, now_us)}).scalars()
    gone = dict.fromkeys(past)
    if limits.max_bytes is not None or limits.max_memories is not None:
        query = text(f"SELECT id, text_bytes, {_MAY_GO} FROM memory WHERE {LIVE} ORDER BY ordinal")
        left = [row for row in connection.execute(query) if row[0] not in gone]
        memories = len(left)
        size = sum(row[1] + trace_bytes.get(row[0], 0) for row in left)
        for memory_id, text_bytes, may_go in left:
            fits = limits.max_memories is None or memories <= limits.max_memories
            if fits and (limits.max_bytes is None or size <= limits.max_bytes):
                break
            if may_go:
                gone[memory_id] = None
                memories -= 1
                size -= text_bytes + trace_bytes.get(memory_id, 0)
    return list(gone)


def is_any_past(connection: Connection, limits: Retention, trace_bytes_sum: int, now_us: int) -> bool:
    """Whether `past_ids` may name any, from what indexes and sums tell; the cheap question of every open."""
    if words.has_expired(connection, now_us):
        return True
    if limits.max_age is not None:
        query = text(f"SELECT 1 FROM memory WHERE created_us < :cut AND {_MAY_GO} AND {LIVE} LIMIT 1")
        if connection.execute(query, {"cut": _cut(limits.max_age, now_us)}).scalar_one_or_none() is not None:
            return True
    if limits.max_bytes is None and limits.max_memories is None:
        return False
    memories, _, text_bytes = words.sums(connection)
    too_many = limits.max_memories is not None and memories > limits.max_memories
    return too_many or (limits.max_bytes is not None and text_bytes + trace_bytes_sum > limits.max_bytes)


def _cut(max_age: timedelta, now_us: int) -> int:
    return now_us - max_age // timedelta(microseconds=1)
