"""Word search: BM25 over the FTS5 index of a namespace, stemmed, accents and case aside."""

import re
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, text

from mnemos.store import words
from mnemos.store.catalog import now_us
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

_SEARCH = (
    "SELECT m.id, bm25(words) FROM words CROSS JOIN memory m ON m.ordinal = words.rowid "
    "WHERE words MATCH :query "
    f"AND {words.LIVE} AND m.hidden = 0 AND (m.expires_us IS NULL OR m.expires_us > :now)"
)
_ORDER = " ORDER BY bm25(words), m.ordinal LIMIT :limit"
_COUNT = text("SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH :query LIMIT :limit)")


def search(
    connection: Connection, query: str, limit: int, where: "Condition | None" = None
) -> list[tuple[str, float]]:
    """(memory id, BM25) pairs, best first; a higher score is better. Nothing for a query without a word.

    `where` is as in `words.Filter`; how telling a term is goes by all memories, whatever it allows.
    """
    terms = list(dict.fromkeys(term.casefold() for term in _TOKEN.findall(query)))[:_MAX_TERMS]
    if not terms or limit <= 0:
        return []
    kept = telling_terms(connection, terms)
    expression = " OR ".join(_quoted(term) for term in kept)
    bound: dict[str, Any] = {"query": expression, "now": now_us(), "limit": limit}
    allowed = ""
    if where is not None:
        allowed = f" AND m.id IN (SELECT id FROM memory WHERE {to_sql(where, bound)})"
    rows = connection.execute(text(_SEARCH + allowed + _ORDER), bound)
    return [(row[0], -float(row[1])) for row in rows]


def telling_terms(connection: Connection, terms: list[str]) -> list[str]:
    """The terms that tell memories apart; all of them when none does."""
    telling = [term for term in terms if term not in STOP_WORDS]
    total = words.count(connection)
    if total <= _FEW_MEMORIES:
        return telling or terms
    most = max(int(total * _COMMON_SHARE), _FEW_MEMORIES)
    kept = [
        term
        for term in telling
        if connection.execute(_COUNT, {"query": _quoted(term), "limit": most + 1}).scalar_one() <= most
    ]
    return kept or telling or terms


def _quoted(term: str) -> str:
    return '"' + term.replace('"', '""') + '"'
