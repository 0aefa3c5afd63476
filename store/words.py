"""Reading and writing the rows of a namespace database: texts, titles, tags, sessions, provenance."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, bindparam, text

from mnemos.errors import AmbiguousIdError, NotFoundError
from mnemos.store.catalog import chunks, now_us
from mnemos.store.database import rows_of
from mnemos.store.ids import ID_CHARS, check_prefix
from mnemos.store.records import SessionRecord, UseRecord

if TYPE_CHECKING:
    from mnemos.store.selectors import Condition

# What may be shown: not buried, and known to the catalog. The plus keeps the planner off that index.
LIVE = "+erased = 0 AND born <= committed()"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_US, _LAST_US = (
    (moment - _EPOCH) // timedelta(microseconds=1)
    for moment in (datetime(1, 1, 3, tzinfo=UTC), datetime(9999, 12, 29, tzinfo=UTC))
)
COLUMNS = (
    "ordinal, id, kind, text, reply, speaker, title, source, session_id, created_us, expires_us, tags, "
    "status, pinned, hidden, content_tag, text_bytes, batch, born"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One memory's words as the namespace database holds them."""

    ordinal: int
    id: str
    kind: str
    text: str
    reply: str | None
    speaker: str | None
    title: str | None
    source: str | None
    session_id: str | None
    created_us: int
    expires_us: int | None
    tags: str  # a JSON list
    status: str
    pinned: int
    hidden: int
    content_tag: bytes | None
    text_bytes: int
    batch: int  # of the last write that touched it
    born: int  # the write that made it


@dataclass(frozen=True, slots=True)
class Filter:
    """Conditions that must all hold."""

    ids: Sequence[str] | None = None
    session_id: str | None = None
    tags: Sequence[str] | None = None
    matching: str | None = None
    source: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    kinds: Sequence[str] | None = None
    include_hidden: bool = True  # and expired ones
    expired_by_us: int | None = None
    where: "Condition | None" = None  # as `selector_sql.resolved` makes it
    after: int | None = None  # an ordinal


def to_us(moment: datetime) -> int:
    """Microseconds of Unix time; a moment without a time zone is taken as UTC."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(microseconds=1)


def from_us(moment_us: int) -> datetime:
    """In UTC; what no calendar holds, or only in some time zones, is the nearest moment that all hold."""
    return _EPOCH + timedelta(microseconds=min(max(moment_us, _FIRST_US), _LAST_US))


def batch(connection: Connection) -> int:
    return int(connection.execute(text("SELECT value FROM meta WHERE key = 'batch'")).scalar_one())


def set_batch(connection: Connection, value: int) -> None:
    connection.execute(text("UPDATE meta SET value = :value WHERE key = 'batch'"), {"value": value})


def next_ordinal(connection: Connection) -> int:
    return int(connection.execute(text("SELECT coalesce(max(ordinal), 0) + 1 FROM memory")).scalar_one())


def insert_rows(connection: Connection, rows: Sequence[Row]) -> None:
    if rows:
        names = COLUMNS.split(", ")
        marks = ", ".join("?" for _ in names)
        pick = attrgetter(*names)
        connection.exec_driver_sql(
            f"INSERT INTO memory ({COLUMNS}) VALUES ({marks})", [pick(row) for row in rows]
        )


def ids_by_content(connection: Connection, tags: Iterable[bytes]) -> dict[bytes, str]:
    query = text(f"SELECT id FROM memory WHERE content_tag = :tag AND {LIVE}")
    found: dict[bytes, str] = {}
    for tag in tags:
        known = connection.execute(query, {"tag": tag}).scalar_one_or_none()
        if known is not None:
            found[tag] = known
    return found


def full_id(connection: Connection, prefix: str) -> str:
    """The one id that starts so. NotFoundError, AmbiguousIdError, UsageError."""
    return _full_id(connection, prefix, "memory", f"AND {LIVE}")


def full_ids(connection: Connection, prefixes: Sequence[str]) -> list[str]:
    """As `full_id`, of each; whole ids are looked up together."""
    query = text(f"SELECT id FROM memory WHERE id IN :ids AND {LIVE}")
    query = query.bindparams(bindparam("ids", expanding=True))
    known: set[str] = set()
    for part in chunks(prefixes):
        known.update(connection.execute(query, {"ids": part}).scalars())
    return [prefix if prefix in known else full_id(connection, prefix) for prefix in prefixes]


def full_session_id(connection: Connection, prefix: str) -> str:
    return _full_id(connection, prefix, "session", "AND is_closed = 0")


def _full_id(connection: Connection, prefix: str, table: str, extra: str) -> str:
    prefix = check_prefix(prefix, table)
    if len(prefix) == ID_CHARS:
        query = text(f"SELECT id FROM {table} WHERE id = :low {extra} LIMIT 2")
    else:
        query = text(f"SELECT id FROM {table} WHERE id >= :low AND id < :high {extra} LIMIT 2")
    found = connection.execute(query, {"low": prefix, "high": prefix + "~"}).scalars().all()
    if not found:
        raise NotFoundError(f"No {table} of this namespace has an id that starts with {prefix!r}.")
    if len(found) > 1:
        raise AmbiguousIdError(
            f"More than one {table} has an id that starts with {prefix!r}; give more of it."
        )
    return str(found[0])


def select_rows(
    connection: Connection,
    chosen: Filter,
    *,
    newest_first: bool = False,
    limit: int | None = None,
    offset: int = 0,
) -> list[Row]:
    """Rows that are not erased, in the order they were written or the reverse."""
    if chosen.ids is not None and len(chosen.ids) > 1000:
        found: list[Row] = []
        for part in chunks(chosen.ids):
            found += _select(connection, chosen, part, "", {})
        found.sort(key=lambda row: row.ordinal, reverse=newest_first)
        return found[offset : None if limit is None else offset + limit]
    tail = f" ORDER BY ordinal {'DESC' if newest_first else 'ASC'} LIMIT :limit OFFSET :offset"
    return _select(
        connection, chosen, chosen.ids, tail, {"limit": -1 if limit is None else limit, "offset": offset}
    )


def _select(
    connection: Connection, chosen: Filter, ids: Sequence[str] | None, tail: str, values: dict[str, Any]
) -> list[Row]:
    where, bound = conditions_of(chosen, ids)
    query = text(f"SELECT {COLUMNS} FROM memory WHERE {where}{tail}")
    for name, value in bound.items():
        if isinstance(value, list):
            query = query.bindparams(bindparam(name, expanding=True))
    return [Row(*row) for row in connection.execute(query, {**bound, **values})]


def conditions_of(chosen: Filter, ids: Sequence[str] | None = None) -> tuple[str, dict[str, Any]]:
    """What a row must meet as SQL, and the values bound in it; a list among them is to be expanded."""
    parts, bound = [LIVE], dict[str, Any]()
    if ids is not None:
        parts.append("id IN :ids")
        bound["ids"] = list(ids)
    for name in ("session_id", "source"):
        value = getattr(chosen, name)
        if value is not None:
            parts.append(f"{name} = :{name}")
            bound[name] = value
    if chosen.after is not None:
        parts.append("ordinal > :after")
        bound["after"] = chosen.after
    if chosen.kinds is not None:
        parts.append("kind IN :kinds")
        bound["kinds"] = list(chosen.kinds)
    for index, tag in enumerate(chosen.tags or ()):
        parts.append(f"EXISTS (SELECT 1 FROM json_each(memory.tags) WHERE value = :tag{index})")
        bound[f"tag{index}"] = tag
    if chosen.matching is not None:
        columns = ("text", "reply", "title", "source")
        parts.append("(" + " OR ".join(f"contains({column}, :folded)" for column in columns) + ")")
        bound["folded"] = chosen.matching.casefold()
    if chosen.since is not None:
        parts.append("created_us >= :since")
        bound["since"] = to_us(chosen.since)
    if chosen.until is not None:
        parts.append("created_us < :until")
        bound["until"] = to_us(chosen.until)
    if not chosen.include_hidden:
        parts.append("hidden = 0 AND (expires_us IS NULL OR expires_us > :now)")
        bound["now"] = now_us()
    if chosen.expired_by_us is not None:
        parts.append("expires_us IS NOT NULL AND expires_us <= :expired")
        bound["expired"] = chosen.expired_by_us
    if chosen.where is not None:
        from mnemos.store.selector_sql import to_sql  # late: it looks ids up here

        parts.append(to_sql(chosen.where, bound))
    return " AND ".join(parts), bound


def recent_ids(
    connection: Connection, limit: int, where: "Condition | None" = None, ids: Sequence[str] | None = None
) -> list[str]:
    """Newest first, of those neither hidden nor expired; `where` is as in `Filter`."""
    chosen, bound = conditions_of(Filter(include_hidden=False, where=where))
    if ids is not None:
        chosen += " AND id IN (SELECT value FROM json_each(:ids))"
        bound["ids"] = json.dumps(list(ids))
    # The plus: of a few ids these are looked up, not all rows from the latest on.
    order = "ordinal" if ids is None else "+ordinal"
    query = f"SELECT id FROM memory WHERE {chosen} ORDER BY {order} DESC LIMIT :limit"
    return [row[0] for row in rows_of(connection, query, {**bound, "limit": limit})]


def count(connection: Connection) -> int:
    return int(connection.execute(text(f"SELECT count(*) FROM memory WHERE {LIVE}")).scalar_one())


def holds_just(connection: Connection, number: int) -> bool:
    """Whether there are so many memories and no more, without counting further than that."""
    query = text(f"SELECT count(*) FROM (SELECT 1 FROM memory WHERE {LIVE} LIMIT :most)")
    return int(connection.execute(query, {"most": number + 1}).scalar_one()) == number


def count_rows(connection: Connection, chosen: Filter) -> int:
    """How many rows `select_rows` would give; the filter names no ids."""
    where, bound = conditions_of(chosen)
    query = text(f"SELECT count(*) FROM memory WHERE {where}")
    for name, value in bound.items():
        if isinstance(value, list):
            query = query.bindparams(bindparam(name, expanding=True))
    return int(connection.execute(query, bound).scalar_one())


def sums(connection: Connection) -> tuple[int, int, int]:
    """Memories, hidden ones, bytes of text."""
    row = connection.execute(
        text(
            "SELECT count(*), coalesce(sum(hidden), 0), coalesce(sum(text_bytes), 0) FROM memory WHERE "
            f"{LIVE}"
        )
    ).one()
    return int(row[0]), int(row[1]), int(row[2])


def set_flags(connection: Connection, memory_id: str, pinned: bool | None, hidden: bool | None) -> None:
    for name, value in (("pinned", pinned), ("hidden", hidden)):
        if value is not None:
            connection.execute(
                text(f"UPDATE memory SET {name} = :value WHERE id = :id"),
                {"value": int(value), "id": memory_id},
            )


def has_expired(connection: Connection, now_us: int) -> bool:
    query = text(
        f"SELECT 1 FROM memory WHERE expires_us IS NOT NULL AND expires_us <= :now AND {LIVE} LIMIT 1"
    )
    return connection.execute(query, {"now": now_us}).scalar_one_or_none() is not None


# -- provenance


def set_uses(connection: Connection, reply_id: str, uses: Sequence[UseRecord]) -> None:
    connection.execute(text("DELETE FROM use WHERE reply_id = :id"), {"id": reply_id})
    rows = [
        {
            "reply": reply_id,
            "memory": use.memory_id,
            "rank": use.rank,
            "score": use.score,
            "signals": json.dumps(dict(use.signals), sort_keys=True),
            "attention": use.attention,
            "cited": int(use.cited),
        }
        for use in uses
    ]
    if rows:
        connection.execute(
            text(
                "INSERT OR REPLACE INTO use VALUES (:reply, :memory, :rank, :score, :signals, :attention, "
                ":cited)"
            ),
            rows,
        )


def uses_of(connection: Connection, reply_id: str) -> list[UseRecord]:
    query = text(
        "SELECT memory_id, rank, score, signals, attention, cited FROM use WHERE reply_id = :id AND "
        f"memory_id IN (SELECT id FROM memory WHERE {LIVE}) ORDER BY rank"
    )
    rows = connection.execute(query, {"id": reply_id})
    return [UseRecord(row[0], row[1], row[2], json.loads(row[3]), row[4], bool(row[5])) for row in rows]


def used_in(connection: Connection, memory_ids: Iterable[str]) -> list[str]:
    """Ids of the replies that any of these memories was paged in for, oldest first."""
    query = text(
        "SELECT DISTINCT m.ordinal, m.id FROM use u JOIN memory m ON m.id = u.reply_id WHERE u.memory_id IN "
        f":ids AND {LIVE}"
    ).bindparams(bindparam("ids", expanding=True))
    found: list[Any] = []
    for part in chunks(memory_ids):
        found += connection.execute(query, {"ids": part}).all()
    return list(dict.fromkeys(row[1] for row in sorted(found)))


# -- sessions

_SESSIONS = (
    # The time of change follows from the memories that are there, so that none leaves a mark once erased.
    "SELECT s.id, s.title, s.created_us, max(s.created_us, coalesce((SELECT max(m.created_us) FROM memory m "
    f"WHERE m.session_id = s.id AND {LIVE}), 0)) AS updated_us, (SELECT count(*) FROM memory m WHERE "
    f"m.session_id = s.id AND m.kind = 'exchange' AND {LIVE}), s.parent FROM session s WHERE s.is_closed = 0"
)


def add_session(connection: Connection, session_id: str, title: str | None) -> None:
    now = now_us()
    connection.execute(
        text(
            "INSERT OR IGNORE INTO session (id, title, created_us, updated_us) VALUES (:id, :title, :now, "
            ":now)"
        ),
        {"id": session_id, "title": title, "now": now},
    )


def touch_sessions(connection: Connection, session_ids: Iterable[str]) -> None:
    """Makes the sessions that memories name."""
    for session_id in sorted(set(session_ids)):
        add_session(connection, session_id, None)


def sessions(connection: Connection, namespace: str, session_id: str | None = None) -> list[SessionRecord]:
    """Newest change first. The turns of a branch count those before it."""
    from mnemos.store.branches import inherited_turns  # late: it reads rows as they are made here

    where = "" if session_id is None else " AND s.id = :id"
    found = connection.execute(
        text(f"{_SESSIONS}{where} ORDER BY 4 DESC, s.id"),
        {} if session_id is None else {"id": session_id},
    ).all()
    before = inherited_turns(connection, [row[0] for row in found])
    return [
        SessionRecord(
            row[0],
            namespace,
            row[1],
            from_us(row[2]),
            from_us(row[3]),
            row[4] + before.get(row[0], 0),
            row[5],
        )
        for row in found
    ]


def rename_session(connection: Connection, session_id: str, title: str | None) -> None:
    connection.execute(
        text("UPDATE session SET title = :title WHERE id = :id"), {"title": title, "id": session_id}
    )
