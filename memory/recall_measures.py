"""Recall of questions' evidence from the ranks it was found at."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from mnemos.memory.conversations import Conversation, Question


@dataclass(frozen=True, slots=True)
class Asked:
    """A question that can be scored: its turns of evidence exist when it is asked."""

    conversation: int
    number: int  # within its conversation, from 0
    question: Question
    evidence: tuple[str, ...]  # turn ids
    visible: int  # turns of the conversation that exist
    asked_at: datetime  # when the latest of them was said


@dataclass(frozen=True, slots=True)
class Ranked:
    """What a search made of a question: the rank of each turn of evidence, from 1, or None."""

    asked: Asked
    ranks: Mapping[str, int | None]
    route_ms: float
    rivals: Mapping[str, Mapping[str, int | None]] = field(default_factory=dict)  # their ranks, likewise


def measured(ranked: Sequence[Ranked], ks: Sequence[int]) -> dict[str, dict[str, float]]:
    """Mean share of a question's evidence in the first k, and share of questions with any of it there."""
    recall, hit = {}, {}
    for k in ks:
        found = [[rank is not None and rank <= k for rank in each.ranks.values()] for each in ranked]
        recall[str(k)] = round(statistics.fmean(sum(each) / len(each) for each in found), 4)
        hit[str(k)] = round(statistics.fmean(any(each) for each in found), 4)
    return {"recall": recall, "hit": hit}


def by_category(ranked: Iterable[Ranked], ks: Sequence[int]) -> dict[str, dict[str, Any]]:
    """The same for the questions of each category, and how many those are."""
    parts: defaultdict[str, list[Ranked]] = defaultdict(list)
    for each in ranked:
        parts[each.asked.question.category or "-"].append(each)
    return {name: {**measured(part, ks), "questions": len(part)} for name, part in sorted(parts.items())}


def exported(taken: Sequence[Conversation], ranked: Iterable[Ranked]) -> Iterator[dict[str, Any]]:
    """Of each question, in the file's order: where it stands and the ranks of its evidence."""
    for each in sorted(ranked, key=lambda one: (one.asked.conversation, one.asked.number)):
        yield {
            "conversation": taken[each.asked.conversation].id or str(each.asked.conversation),
            "question": each.asked.number,
            "category": each.asked.question.category,
            "ranks": dict(each.ranks),
            "route_ms": round(each.route_ms, 2),
        }


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest rank: the least value that `share` percent of them don't exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share / 100) - 1)]
