"""How much a namespace may hold. What a write would bring beyond that is refused, and nothing of it is kept.

Unlike retention, which takes the oldest memories away, a quota turns new ones down. The limits are numbers in
the `meta` table of the namespace's database, and what counts against them is what is there: what was
forgotten leaves no mark. Archives and imported conversations are merged without regard to them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Connection, text

from mnemos.errors import QuotaExceededError, UsageError
from mnemos.store import words
from mnemos.store.words import LIVE, Row

_KEYS = {
    "memories": "quota_memories",
    "text_bytes": "quota_text_bytes",
    "turns_per_day": "quota_turns_per_day",
}
_LARGEST = 1 << 62
_DAY_US = timedelta(days=1) // timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Quota:
    """Limits of a namespace; None where there is none. A turn is an exchange of the last 24 hours."""

    memories: int | None = None
    text_bytes: int | None = None
    turns_per_day: int | None = None

    @property
    def is_set(self) -> bool:
        return self != Quota()


def check_quota(limits: Quota) -> None:
    """UsageError for limits that are no numbers of 0 or more."""
    for name in _KEYS:
        value = getattr(limits, name)
        if value is not None and not (isinstance(value, int) and 0 <= value < _LARGEST):
            raise UsageError(f"{name} must be a whole number of 0 or more, or None for no limit")


def get_quota(connection: Connection) -> Quota:
    held = {row[0]: int(row[1]) for row in connection.execute(text("SELECT key, value FROM meta"))}
    return Quota(**{name: held.get(key) for name, key in _KEYS.items()})


def set_quota(connection: Connection, limits: Quota) -> None:
    """Sets every limit; one that is None is taken away."""
    check_quota(limits)
    for name, key in _KEYS.items():
        value = getattr(limits, name)
        if value is None:
            connection.execute(text("DELETE FROM meta WHERE key = :key"), {"key": key})
            continue
        connection.execute(
            text("INSERT INTO meta VALUES (:key, :value) ON CONFLICT (key) DO UPDATE SET value = :value"),
            {"key": key, "value": value},
        )


def check_room(connection: Connection, rows: Sequence[Row], now_us: int) -> None:
    """QuotaExceededError when the namespace may not hold these rows besides what it holds.

    A reply is not counted before it is there, and is kept even where it takes the namespace over its bytes.
    """
    limits = get_quota(connection)
    if not limits.is_set:
        return
    held, _, held_bytes = words.sums(connection)
    new_bytes = sum(row.text_bytes for row in rows)
    if limits.memories is not None and held + len(rows) > limits.memories:
        raise _exceeded(f"{limits.memories:,} memories", f"it holds {held:,}")
    if limits.text_bytes is not None and held_bytes + new_bytes > limits.text_bytes:
        raise _exceeded(f"{limits.text_bytes:,} bytes of text", f"it holds {held_bytes:,}")
    new_turns = sum(row.kind == "exchange" for row in rows)
    if limits.turns_per_day is not None and new_turns:
        query = text(f"SELECT count(*) FROM memory WHERE kind = 'exchange' AND created_us > :cut AND {LIVE}")
        turns = connection.execute(query, {"cut": now_us - _DAY_US}).scalar_one()
        if turns + new_turns > limits.turns_per_day:
            raise _exceeded(
                f"{limits.turns_per_day:,} turns a day", f"{turns:,} were made in the last 24 hours"
            )


def _exceeded(limit: str, state: str) -> QuotaExceededError:
    return QuotaExceededError(
        f"the namespace's quota is {limit}, and {state}; nothing was stored. Forget something, wait where "
        "the quota goes by the day, or have it raised"
    )
