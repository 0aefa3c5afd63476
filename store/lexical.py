"""Word search: BM25 over the FTS5 index of a namespace, stemmed, accents and case aside."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, text

from mnemos.store import words
from mnemos.store.catalog import now_us
from mnemos.store.database import rows_of
from mnemos.store.indexing import varints
from mnemos.store.selector_sql import to_sql

if TYPE_CHECKING:
    from mnemos.store.selectors import Condition

_TOKEN = re.compile(r"\w+", re.UNICODE)
_MAX_TERMS = 64
_COMMON_SHARE = 0.02  # of all memories: a term found in more of them is common,
_FEW_MEMORIES = 500  # unless that is no more than these, which cost little to score

STOP_WORDS = frozenset(
    """
    a about am an and any are as at be been but by can could did do does for from had has have he her
    him his how i if in is it its just like me my no not of on or our she so some that the their them
    there they this to too up us was we were what when where which who whom whose why will with would
    you your s t re ve ll d m
    """.split()  # noqa: SIM905
)

_VISIBLE = f"{words.LIVE} AND m.hidden = 0 AND (m.expires_us IS NULL OR m.expires_us > :now)"
_SEARCH = (
    "SELECT m.ordinal, m.id, m.speaker, bm25(words) FROM words "
    "CROSS JOIN memory m ON m.ordinal = words.rowid "
    f"WHERE words MATCH :query AND {_VISIBLE}"
)
_ORDER = " ORDER BY bm25(words), m.ordinal LIMIT :limit"
# Rows of memories are looked up for the best alone: each is another page to decrypt.
_BEST = (
    "SELECT m.ordinal, m.id, m.speaker, w.score FROM (SELECT rowid AS at, bm25(words) AS score FROM words "
    "WHERE words MATCH :query ORDER BY score, rowid LIMIT :most) w CROSS JOIN memory m ON m.ordinal = w.at "
    f"WHERE {_VISIBLE} ORDER BY w.score, m.ordinal LIMIT :limit"
)
_SPARE = 2  # times the limit are ranked, in place of those that are hidden or have expired
_AVERAGES = 1  # rowid in `words_data` of the sums over all rows, whose first number is how many there are
_MOST_SCORED = 20_000  # memories that the terms kept may hold together, beside the rarest one's
_COUNT = text("SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH :query LIMIT :limit)")


@dataclass(frozen=True, slots=True)
class Hit:
    """A memory that shares words with a query; a higher score is better."""

    ordinal: int
    id: str
    speaker: str | None
    score: float


def search(
    connection: Connection, query: str, limit: int, where: "Condition | None" = None
) -> list[tuple[str, float]]:
    """(memory id, BM25) pairs of `ranked`."""
    return [(hit.id, hit.score) for hit in ranked(connection, query, limit, where)]


def ranked(connection: Connection, query: str, limit: int, where: "Condition | None" = None) -> list[Hit]:
    """The best memories by BM25, best first. Nothing for a query without a word.

    `where` is as in `words.Filter`; how telling a term is goes by all memories, whatever it allows.
    """
    terms = list(dict.fromkeys(term.casefold() for term in _TOKEN.findall(query)))[:_MAX_TERMS]
    if not terms or limit <= 0:
        return []
    kept = telling_terms(connection, terms)
    expression = " OR ".join(_quoted(term) for term in kept)
    bound: dict[str, Any] = {"query": expression, "now": now_us(), "limit": limit}
    if where is None:
        most = _SPARE * limit
        rows = rows_of(connection, _BEST, {**bound, "most": most})
        if len(rows) == limit or not _has_more(connection, expression, most):
            return [_hit(row) for row in rows]
    allowed = ""
    if where is not None:
        allowed = f" AND m.id IN (SELECT id FROM memory WHERE {to_sql(where, bound)})"
    return [_hit(row) for row in connection.execute(text(_SEARCH + allowed + _ORDER), bound)]


def _hit(row: Any) -> Hit:
    return Hit(row[0], row[1], row[2], -float(row[3]))


def _has_more(connection: Connection, expression: str, most: int) -> bool:
    """Whether more rows match than `most`."""
    return bool(connection.execute(_COUNT, {"query": expression, "limit": most + 1}).scalar_one() > most)


def telling_terms(connection: Connection, terms: list[str]) -> list[str]:
    """The terms that tell memories apart; all of them when none does.

    In a large namespace the rarest go first, as far as scoring what holds them stays cheap.
    """
    telling = [term for term in terms if term not in STOP_WORDS]
    total = rows_in(connection)
    if total <= _FEW_MEMORIES:
        return telling or terms
    most = max(int(total * _COMMON_SHARE), _FEW_MEMORIES)
    found = {term: count_of(connection, term, most + 1) for term in telling}
    kept: list[str] = []
    scored = 0
    # A term that no memory holds tells nothing: kept alone it would hide what the common ones find.
    for term in sorted((term for term in telling if 0 < found[term] <= most), key=lambda term: found[term]):
        scored += found[term]
        if kept and scored > _MOST_SCORED:
            break
        kept.append(term)
    return [term for term in telling if term in kept] or telling or terms


def rows_in(connection: Connection) -> int:
    """How many rows the index holds, as it says itself: counting them takes as long as they are many."""
    query = text("SELECT block FROM words_data WHERE id = :id")
    block = connection.execute(query, {"id": _AVERAGES}).scalar_one_or_none()
    return varints(block[:10])[0] if block else 0


def count_of(connection: Connection, term: str, most: int) -> int:
    """How many rows hold a term, counted as far as `most`."""
    return int(connection.execute(_COUNT, {"query": _quoted(term), "limit": most}).scalar_one())


def _quoted(term: str) -> str:
    return '"' + term.replace('"', '""') + '"'
