"""Where memories stand among the others: who said them, and which come right before and after."""

import json
from collections.abc import Collection, Sequence
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, text

from mnemos.store import words
from mnemos.store.catalog import chunks, now_us
from mnemos.store.database import rows_of

_DAY_US = 86_400_000_000
# Without a session it is what the same source told on the same day.
_SESSIONS = (
    f"SELECT ordinal, coalesce(session_id, ifnull(source, '') || char(0) || (created_us / {_DAY_US})) "
    "FROM memory WHERE ordinal IN (SELECT value FROM json_each(:ordinals))"
)


class Place(NamedTuple):
    """A memory's speaker and neighbours, as they would be in a bank that never held what is gone."""

    id: str
    speaker: str | None
    before: str | None
    after: str | None
    session: str | None = None  # the same for those told together; None where nobody asked


def _neighbour(order: str, sign: str) -> str:
    return (
        f"(SELECT id FROM memory WHERE ordinal {sign} m.ordinal AND {words.LIVE} AND hidden = 0 AND "
        f"(expires_us IS NULL OR expires_us > :now) ORDER BY ordinal {order} LIMIT 1)"
    )


_PLACES = text(
    f"SELECT m.id, m.speaker, {_neighbour('DESC', '<')}, {_neighbour('ASC', '>')} FROM memory m "
    f"WHERE m.id IN :ids AND {words.LIVE}"
).bindparams(bindparam("ids", expanding=True))


def sessions_of(connection: Connection, ordinals: Collection[int]) -> dict[int, str]:
    """By ordinal, what tells those apart that were told together."""
    found = rows_of(connection, _SESSIONS, {"ordinals": json.dumps(list(ordinals))})
    return {int(ordinal): str(session) for ordinal, session in found}


def places(connection: Connection, ids: Sequence[str]) -> list[Place]:
    """Of those that are there; neighbours are neither hidden nor expired."""
    found: list[Place] = []
    for part in chunks(ids):
        found += [Place(*row) for row in connection.execute(_PLACES, {"ids": part, "now": now_us()})]
    return found
