"""Sessions that begin as another one's past.

A branch is a row that names its parent and the ordinal of the last of the parent's memories that it goes on
from. Nothing is copied: what is forgotten of the parent is gone from the branch. A branch point never lies
beyond the memories that are there, since ordinals that erasing has freed are given out again.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, text

from mnemos.store import words
from mnemos.store.catalog import now_us
from mnemos.store.database import Database

_PARENTS = "SELECT id, parent, branched_at FROM session WHERE parent IS NOT NULL"
Part = tuple[str, int | None]  # a session, and the ordinal up to which its memories count


def add_branch(connection: Connection, session_id: str, title: str | None, parent: str, at: int) -> None:
    connection.execute(
        text(
            "INSERT INTO session (id, title, created_us, updated_us, parent, branched_at) VALUES "
            "(:id, :title, :now, :now, :parent, :at)"
        ),
        {"id": session_id, "title": title, "now": now_us(), "parent": parent, "at": at},
    )


def lineage(parents: dict[str, tuple[str, int]], session_id: str) -> list[Part]:
    """The session itself, then what it branched from, back to the first."""
    parents = dict(parents)
    parts: list[Part] = [(session_id, None)]
    most: int | None = None
    while (found := parents.pop(parts[-1][0], None)) is not None:
        parent, at = found
        most = at if most is None else min(most, at)
        parts.append((parent, most))
    return parts


def history(
    database: Database, session_id: str, limit: int | None, *, include_hidden: bool
) -> list[words.Row]:
    """The latest exchanges of a session and of what it branched from, oldest first."""
    bound: dict[str, object] = {"limit": -1 if limit is None else limit, "now": now_us()}
    parts = lineage(_as_parents(database.rows(_PARENTS)), session_id)
    shown = "" if include_hidden else " AND hidden = 0 AND (expires_us IS NULL OR expires_us > :now)"
    query = (
        f"SELECT {words.COLUMNS} FROM memory WHERE ({_of_parts(parts, bound)}) AND kind = 'exchange' AND "
        f"{words.LIVE}{shown} ORDER BY ordinal DESC LIMIT :limit"
    )
    return [words.Row(*row) for row in database.rows(query, bound)][::-1]


def inherited_turns(connection: Connection, session_ids: Iterable[str]) -> dict[str, int]:
    """How many exchanges each branch among the sessions has of those before it."""
    found = {}
    parents = _parents(connection)
    for session_id in parents.keys() & set(session_ids):
        bound: dict[str, object] = {}
        parts = _of_parts(lineage(parents, session_id)[1:], bound)
        query = text(f"SELECT count(*) FROM memory WHERE ({parts}) AND kind = 'exchange' AND {words.LIVE}")
        found[session_id] = int(connection.execute(query, bound).scalar_one())
    return found


def descendants(connection: Connection, session_ids: Iterable[str]) -> set[str]:
    """The sessions that branched from these, and from those."""
    parents = _parents(connection)
    found = set(session_ids)
    grew = True
    while grew:
        fresh = {each for each, (parent, _) in parents.items() if parent in found and each not in found}
        found |= fresh
        grew = bool(fresh)
    return found - set(session_ids)


def remove_sessions(connection: Connection, session_ids: Sequence[str]) -> None:
    """Takes sessions out; what branched from one branches from its parent, no later than it did itself."""
    for session_id in session_ids:
        query = text("SELECT parent, branched_at FROM session WHERE id = :id")
        row = connection.execute(query, {"id": session_id}).one_or_none()
        if row is None:
            continue
        statement = "UPDATE session SET parent = NULL, branched_at = NULL WHERE parent = :id"
        if row[0] is not None:
            statement = (
                "UPDATE session SET parent = :parent, branched_at = min(branched_at, :at) WHERE parent = :id"
            )
        bound = {"id": session_id, "parent": row[0], "at": row[1]}
        connection.execute(text(statement), bound if row[0] is not None else {"id": session_id})
        connection.execute(text("DELETE FROM session WHERE id = :id"), {"id": session_id})


def close_session(connection: Connection, session_id: str) -> None:
    """Takes a session off the list; its memories stay, and so do its branches."""
    connection.execute(
        text("UPDATE session SET is_closed = 1, title = NULL WHERE id = :id"), {"id": session_id}
    )


def reopen(connection: Connection, session_ids: Iterable[str]) -> None:
    """Sessions that somebody goes on with are there again."""
    query = text("UPDATE session SET is_closed = 0 WHERE id IN :ids AND is_closed = 1")
    connection.execute(query.bindparams(bindparam("ids", expanding=True)), {"ids": list(session_ids)})


def lower_branch_points(connection: Connection) -> None:
    """To memories that are there, once some are not."""
    connection.execute(
        text(
            "UPDATE session SET branched_at = coalesce((SELECT max(ordinal) FROM memory WHERE ordinal <= "
            "session.branched_at), 0) WHERE parent IS NOT NULL"
        )
    )


def shape(connection: Connection) -> Mapping[str, tuple[str, int]]:
    """Each branch's parent, and how many memories were there when it branched, of those that still are."""
    query = text("SELECT count(*) FROM memory WHERE ordinal <= :at")
    return {
        session_id: (parent, int(connection.execute(query, {"at": at}).scalar_one()))
        for session_id, (parent, at) in _parents(connection).items()
    }


def _parents(connection: Connection) -> dict[str, tuple[str, int]]:
    return _as_parents(connection.execute(text(_PARENTS)))


def _as_parents(rows: Iterable[Sequence[Any]]) -> dict[str, tuple[str, int]]:
    return {row[0]: (row[1], int(row[2])) for row in rows}


def _of_parts(parts: Sequence[Part], bound: dict[str, object]) -> str:
    conditions = []
    for index, (session_id, at) in enumerate(parts):
        bound[f"s{index}"] = session_id
        condition = f"session_id = :s{index}"
        if at is not None:
            bound[f"o{index}"] = at
            condition = f"({condition} AND ordinal <= :o{index})"
        conditions.append(condition)
    return " OR ".join(conditions)
