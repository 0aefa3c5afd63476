"""Words that stand beside each other in a query and in a memory: `copper market` says more than both do."""

import math
import re
from dataclasses import dataclass
from itertools import pairwise

from sqlalchemy import Connection

from mnemos.store.database import rows_of
from mnemos.store.lexical import STOP_WORDS, count_of, rows_in, telling_terms

_TOKEN = re.compile(r"\w+", re.UNICODE)
_MOST_PAIRS = 16  # of a query: the first ones
_COMMON = 64  # memories: a pair found in more tells nothing apart
_FEW = 4  # memories: a pair found in no more, of telling words, names what they are about
_NAMING = 0.45  # how telling such a pair is, at least

_HOLDERS = (
    "SELECT m.id FROM words CROSS JOIN memory m ON m.ordinal = words.rowid "
    "WHERE words MATCH :query LIMIT :most"
)


@dataclass(frozen=True, slots=True)
class Phrases:
    """What memories share with a query of its pairs of words."""

    telling: dict[str, float]  # by memory id: how telling the pairs are that it holds, 0 to 1
    named: tuple[tuple[str, ...], ...] = ()  # of each pair that names something: the memories that hold it


NOTHING = Phrases({})


def phrases(connection: Connection, query: str) -> Phrases:
    """The pairs of neighbouring words of a query, in memories.

    A pair counts by how rare it is, and by how rare its words are: chance puts common words together.
    """
    total = rows_in(connection)
    if total < 2:
        return NOTHING
    found: dict[str, float] = {}
    named: list[tuple[str, ...]] = []
    rarity: dict[str, float] = {}
    pairs = pairs_of(query)
    # In a large namespace words that many memories hold are left out: looking for them takes longest.
    kept = set(telling_terms(connection, list(dict.fromkeys(word for pair in pairs for word in pair))))
    for first, second in pairs:
        if first not in kept or second not in kept:
            continue
        rows = rows_of(connection, _HOLDERS, {"query": f'"{first} {second}"', "most": _COMMON + 1})
        holders = tuple(str(row[0]) for row in rows)
        if not 0 < len(holders) <= _COMMON:
            continue
        for term in (first, second):
            if term not in rarity:
                rarity[term] = _rarity(count_of(connection, term, total), total)
        telling = _rarity(len(holders), total) * math.sqrt(rarity[first] * rarity[second])
        for memory_id in holders:
            found[memory_id] = min(1.0, found.get(memory_id, 0.0) + telling)
        if len(holders) <= _FEW and telling >= _NAMING:
            named.append(holders)
    return Phrases(found, tuple(named))


def pairs_of(query: str) -> list[tuple[str, str]]:
    """Pairs of words that follow each other, neither of them a stop word, each pair once."""
    terms = [term.casefold() for term in _TOKEN.findall(query)]
    told = [pair for pair in pairwise(terms) if STOP_WORDS.isdisjoint(pair)]
    return list(dict.fromkeys(told))[:_MOST_PAIRS]


def _rarity(count: int, total: int) -> float:
    """1 for what one memory of all holds, 0 for what all hold."""
    return math.log(total / min(max(count, 1), total)) / math.log(total)
