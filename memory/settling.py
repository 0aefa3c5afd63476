"""The last word on a ranking: what is said twice stands once, and what is newest of a fact stands first.

Both go by the words themselves, so that nothing is kept between queries, and a bank that never held a memory
ranks the others alike.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from mnemos.memory.router import Scored

NEWER = "newer"  # the signal of a memory that was moved before an older statement of the same
_WORD = re.compile(r"\w+")
_ALIKE = 0.6  # of the shorter one's words, for two statements to be about the same
_LEAST_SHARED = 3  # words
_SAME = 0.8  # of all words: one says hardly more than the other
_NEAR_TIE = 0.02  # of the best score: scores so close tell nothing apart


@dataclass(frozen=True, slots=True)
class Statement:
    """What a memory says, and when it was said by whom."""

    text: str
    speaker: str | None
    created_at: datetime


def settled(ranked: Sequence[Scored], said: Mapping[str, Statement], query: str) -> list[Scored]:
    """The ranking, best first, of those that `said` holds."""
    known = [each for each in ranked if each.id in said]
    words = {each.id: _words(said[each.id].text) for each in known}
    asked = frozenset(_words(query))
    return _spread(_updated(_once(known, words, said), words, said, asked), words)


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.casefold()))


def _once(
    ranked: Sequence[Scored], words: Mapping[str, tuple[str, ...]], said: Mapping[str, Statement]
) -> list[Scored]:
    """Of memories with the same words, the newest in the place of the best."""
    places: dict[object, int] = {}
    found: list[Scored] = []
    for each in ranked:
        key = (words[each.id], said[each.id].speaker) if words[each.id] else each.id
        at = places.setdefault(key, len(found))
        if at == len(found):
            found.append(each)
        elif said[each.id].created_at > said[found[at].id].created_at:
            found[at] = replace(each, score=found[at].score, alone=found[at].alone)
    return found


def _updated(
    ranked: Sequence[Scored],
    words: Mapping[str, tuple[str, ...]],
    said: Mapping[str, Statement],
    asked: frozenset[str],
) -> list[Scored]:
    """Moves a newer statement right before an older one of the same thing, with the older one's score."""
    found = list(ranked)
    for each in ranked:
        newer = said[each.id]
        own = frozenset(words[each.id])
        at = next(index for index, other in enumerate(found) if other.id == each.id)
        for index in range(at):
            older = said[found[index].id]
            other = frozenset(words[found[index].id])
            if (
                newer.created_at > older.created_at
                and newer.speaker == older.speaker
                and _is_restated(own, other)
                and asked & other <= own
            ):
                place, marked = found[index], {**each.signals, NEWER: 1.0}
                moved = replace(found.pop(at), score=place.score, alone=place.alone, signals=marked)
                found.insert(index, moved)
                break
    return found


def _is_restated(newer: frozenset[str], older: frozenset[str]) -> bool:
    shared = len(newer & older)
    least = min(len(newer), len(older))
    return shared >= max(_LEAST_SHARED, _ALIKE * least) and not older <= newer


def _spread(ranked: Sequence[Scored], words: Mapping[str, tuple[str, ...]]) -> list[Scored]:
    """Where two score the same as far as that can be told, one that says something new goes first."""
    left = list(ranked)
    own = {each.id: frozenset(words[each.id]) for each in left}
    found: list[Scored] = []
    margin = _NEAR_TIE * abs(left[0].score) if left else 0.0
    while left:
        tied = [each for each in left if left[0].score - each.score <= margin]
        best = next((each for each in tied if not _is_said(each, found, own)), left[0])
        left.remove(best)
        found.append(best)
    return found


def _is_said(one: Scored, found: Sequence[Scored], words: Mapping[str, frozenset[str]]) -> bool:
    own = words[one.id]
    return any(
        len(own & words[other.id]) >= _SAME * max(len(own | words[other.id]), 1)
        for other in found
        if NEWER not in other.signals
    )
