"""The memories that a router looks at for one query: by words, by recency, and beside the best of them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from mnemos.store import lexical, words
from mnemos.store.catalog import now_us
from mnemos.store.database import rows_of
from mnemos.store.nearby import Place, sessions_of
from mnemos.store.words import Filter, conditions_of

if TYPE_CHECKING:
    from mnemos.store.selectors import Condition

_VISIBLE = f"{words.LIVE} AND hidden = 0 AND (expires_us IS NULL OR expires_us > :now)"
_BESIDE = (
    f"SELECT (SELECT ordinal FROM memory WHERE ordinal < w.value AND {_VISIBLE} "
    "ORDER BY ordinal DESC LIMIT 1), "
    f"(SELECT ordinal FROM memory WHERE ordinal > w.value AND {_VISIBLE} ORDER BY ordinal LIMIT 1) "
    "FROM json_each(:ordinals) w"
)
_APART = (
    "SELECT g.key FROM json_each(:gaps) g WHERE EXISTS (SELECT 1 FROM memory WHERE "
    "ordinal > json_extract(g.value, '$[0]') AND ordinal < json_extract(g.value, '$[1]') "
    f"AND {_VISIBLE})"
)


@dataclass(frozen=True, slots=True)
class Candidates:
    """Memories to be scored."""

    lexical: dict[str, float]  # BM25 by memory id, best first, of those that share a word with the query
    places: dict[str, Place]  # of every candidate, neighbours being named only where they are candidates too


def candidates(
    connection: Connection,
    query: str | None,
    *,
    by_words: int,
    recent: int,
    beside: int,
    where: "Condition | None" = None,
    more: Sequence[str] = (),
) -> Candidates:
    """The best `by_words` by the words of `query`, the `recent` latest, the neighbours of the best `beside`
    by words, and `more` ids; all neither hidden nor expired, and allowed by `where` (as in `words.Filter`).
    """
    ranked = [] if query is None else lexical.ranked(connection, query, by_words, where)
    best = [hit.ordinal for hit in ranked[:beside]]
    rows = {hit.ordinal: (hit.id, hit.speaker) for hit in ranked}
    allowed, bound = conditions_of(Filter(include_hidden=False, where=where))
    select = f"SELECT ordinal, id, speaker FROM memory WHERE {allowed}"
    latest = f"{select} ORDER BY ordinal DESC LIMIT :recent"
    for ordinal, memory_id, speaker in rows_of(connection, latest, {**bound, "recent": recent}):
        rows.setdefault(ordinal, (memory_id, speaker))
    pairs = rows_of(connection, _BESIDE, {"ordinals": json.dumps(best), "now": now_us()})
    near = [ordinal for pair in pairs for ordinal in pair if ordinal is not None and ordinal not in rows]
    for column, wanted in (("ordinal", near), ("id", list(more))):
        if not wanted:
            continue
        chosen = f"{select} AND {column} IN (SELECT value FROM json_each(:wanted))"
        found = rows_of(connection, chosen, {**bound, "wanted": json.dumps(wanted)})
        known = {row[0]: (row[1], row[2]) for row in found}
        by_key = {row[0] if column == "id" else ordinal: ordinal for ordinal, row in known.items()}
        for key in wanted:  # in the order they were named
            if key in by_key:
                rows.setdefault(by_key[key], known[by_key[key]])
    return Candidates({hit.id: hit.score for hit in ranked}, _placed(connection, rows))


def _placed(connection: Connection, rows: dict[int, tuple[str, str | None]]) -> dict[str, Place]:
    """Which of the candidates follow each other without a visible memory between them."""
    ordered = sorted(rows)
    gaps = [(low, high) for low, high in pairwise(ordered) if high - low > 1]
    found = rows_of(connection, _APART, {"gaps": json.dumps(gaps), "now": now_us()})
    apart = {gaps[int(row[0])] for row in found}
    before: dict[int, str] = {}
    after: dict[int, str] = {}
    for low, high in pairwise(ordered):
        if (low, high) not in apart:
            before[high], after[low] = rows[low][0], rows[high][0]
    sessions = sessions_of(connection, rows)
    return {
        memory_id: Place(memory_id, speaker, before.get(ordinal), after.get(ordinal), sessions.get(ordinal))
        for ordinal, (memory_id, speaker) in rows.items()
    }
