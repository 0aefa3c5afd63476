"""`mnemos eval recall`: how much of the evidence of questions a search brings back.

Conversations become memories of a real bank in a temporary directory, and questions go through its own
`search`. Memories that don't exist yet when a question is asked (`before`) are hidden for it.
"""

import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, get_args

from mnemos.errors import UsageError
from mnemos.memory.bank import MemoryBank
from mnemos.memory.conversations import Conversation, Question, Turn, fitting, read_conversations
from mnemos.memory.records import RecalledMemory, RouterName
from mnemos.memory.rounds import search_in_rounds
from mnemos.store.keys import KeyFile
from mnemos.store.records import MemoryDraft

if TYPE_CHECKING:
    from mnemos.attention.models import LanguageModel

Unit = Literal["turn", "pair"]
UNITS: tuple[Unit, ...] = get_args(Unit)
DEFAULT_KS = (1, 5, 10, 16, 20)
_NAMESPACE = "eval"


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


@dataclass(slots=True)
class Tally:
    """What was written and encoded."""

    memories: int = 0
    tokens: int = 0
    encode_s: float = 0.0
    ranked: list[Ranked] = field(default_factory=list)


def run(
    path: Path,
    *,
    model: "LanguageModel | None",
    unit: Unit = "turn",
    ks: Sequence[int] = DEFAULT_KS,
    router: RouterName = "full",
    conversations: int | None = None,
    merge: bool = False,
    questions: int | None = None,
    rounds: int = 1,
    export: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Recall and hit rate at each of `ks`, with rates and latencies.

    With `rounds` above 1, memories are recalled as an agent with so many rounds does, which share one `k`.

    `model` is needed unless the router is `lexical`. `conversations` takes the first ones, `questions` that
    many of theirs, spread evenly. `merge` puts all conversations into one namespace. `export` becomes a
    file of JSON lines with ranks by id, never words. Raises NotFoundError, and UsageError when the file
    holds no question with evidence.
    """
    if rounds > 1 and (len(ks) > 1 or router != "full"):
        raise UsageError("Rounds of recall share one k and are made by the full router: give one --k.")
    taken = list(islice(read_conversations(path), conversations))
    asked = spread([each for at, one in enumerate(taken) for each in askable(at, one)], questions)
    if not asked:
        raise UsageError(f"{path} has no question with evidence that exists when it is asked.")
    if export is not None:
        export.touch()  # a place that can't be written to is told before the work, not after it
    tally = Tally()
    groups = [range(len(taken))] if merge else [range(at, at + 1) for at in range(len(taken))]
    for group in groups:
        of_group = [each for each in asked if each.conversation in group]
        if not of_group:
            continue
        with TemporaryDirectory(prefix="mnemos-eval-") as folder:
            keys = KeyFile(Path(folder) / "bank.key")
            with MemoryBank.open(Path(folder) / "bank", keys=keys) as bank:
                held = Held(bank, None if router == "lexical" else model, rounds)
                for at in group:
                    last = max((each.visible for each in of_group if each.conversation == at), default=0)
                    held.write(at, taken[at].memories if merge else taken[at].memories[:last], unit)
                held.encode(tally)
                for ranked in held.ask(of_group, max(ks), router):
                    tally.ranked.append(ranked)
                    if on_progress is not None:
                        on_progress(len(tally.ranked), len(asked))
    if export is not None:
        with export.open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(line) + "\n" for line in exported(taken, tally.ranked))
    return {
        **measured(tally.ranked, ks),
        "by_category": by_category(tally.ranked, ks),
        "questions": len(tally.ranked),
        "memories": tally.memories,
        "encode_tokens_per_s": round(tally.tokens / tally.encode_s, 1) if tally.encode_s else None,
        "route_ms_p50": round(percentile([each.route_ms for each in tally.ranked], 50), 2),
        "route_ms_p95": round(percentile([each.route_ms for each in tally.ranked], 95), 2),
        "conversations": len(taken),
        "unit": unit,
        "router": router,
        "rounds": rounds,
        "merged": merge,
        "file": path.name,
        "model": model.name if model is not None and router != "lexical" else None,
    }


def askable(at: int, conversation: Conversation) -> Iterator[Asked]:
    """Questions of a conversation whose evidence exists when they are asked, with that evidence."""
    for number, question in enumerate(conversation.questions):
        turns = conversation.visible(question)
        known = {turn.id for turn in turns}
        evidence = tuple(dict.fromkeys(each for each in question.evidence if each in known))
        if evidence:
            yield Asked(at, number, question, evidence, len(turns), turns[-1].created_at)


def spread(asked: Sequence[Asked], most: int | None) -> list[Asked]:
    """At most that many, evenly over all."""
    if most is None or len(asked) <= most:
        return list(asked)
    return [asked[index * len(asked) // most] for index in range(most)]


def units(turns: Sequence[Turn], unit: Unit) -> Iterator[tuple[Turn, ...]]:
    """Single turns, or two that follow each other at the same time; the odd one stays alone."""
    at = 0
    while at < len(turns):
        together = unit == "pair" and at + 1 < len(turns) and turns[at].time == turns[at + 1].time
        yield tuple(turns[at : at + (2 if together else 1)])
        at += 2 if together else 1


def draft_of(turns: Sequence[Turn]) -> MemoryDraft:
    """One turn as a note; a pair with an assistant as an exchange, any other as a note of two lines."""
    first, created_at = turns[0], turns[0].created_at
    speaker = first.speaker or None
    if len(turns) == 1:
        return MemoryDraft(fitting(first.text), speaker=speaker, created_at=created_at)
    second = turns[1]
    if second.speaker.casefold() == "assistant":
        return MemoryDraft(
            fitting(first.text), kind="exchange", reply=second.text, speaker=speaker, created_at=created_at
        )
    line = f"{second.speaker}: {second.text}" if second.speaker else second.text
    return MemoryDraft(fitting(f"{first.text}\n{line}"), speaker=speaker, created_at=created_at)


class Held:
    """Conversations as the memories of one namespace."""

    def __init__(self, bank: MemoryBank, model: "LanguageModel | None", rounds: int = 1) -> None:
        self._bank = bank
        self._model = model
        self._rounds = rounds
        self._turns: dict[str, tuple[int, tuple[str, ...]]] = {}  # memory id -> conversation, turn ids
        self._made: dict[int, list[tuple[str, int]]] = {}  # of each conversation: memory id, turns up to it

    def write(self, at: int, turns: Sequence[Turn], unit: Unit) -> None:
        parts = list(units(turns, unit))
        made = self._bank.remember_many([draft_of(part) for part in parts], namespace=_NAMESPACE)
        upto = 0
        self._made[at] = []
        for memory, part in zip(made, parts, strict=True):
            upto += len(part)
            self._turns[memory.id] = (at, tuple(turn.id for turn in part))
            self._made[at].append((memory.id, upto))

    def encode(self, tally: Tally) -> None:
        """Make the traces, and count what that took."""
        tally.memories += len(self._turns)
        if self._model is None:
            return
        self._bank.recaller(self._model)  # the frozen prefix is no memory's cost
        started = time.perf_counter()
        self._bank.encode_pending(self._model, namespace=_NAMESPACE)
        tally.encode_s += time.perf_counter() - started
        tally.tokens += self._bank.stats(_NAMESPACE).tokens

    def ask(self, asked: Sequence[Asked], limit: int, router: RouterName) -> Iterator[Ranked]:
        """The latest questions of a conversation first, so that each memory is hidden once."""
        for at, made in self._made.items():
            left, hidden = list(made), list[str]()
            own = [each for each in asked if each.conversation == at]
            for each in sorted(own, key=lambda one: -one.visible):
                while left and left[-1][1] > each.visible:
                    hidden.append(left.pop()[0])
                    self._bank.hide(hidden[-1], namespace=_NAMESPACE)
                yield self._search(each, limit, router)
            for memory_id in hidden:
                self._bank.unhide(memory_id, namespace=_NAMESPACE)

    def _search(self, asked: Asked, limit: int, router: RouterName) -> Ranked:
        question, started = asked.question.question, time.perf_counter()
        found: Sequence[RecalledMemory]
        if self._rounds > 1:
            recaller = self._bank.recaller(self._model)
            found = search_in_rounds(recaller, question, namespace=_NAMESPACE, k=limit, rounds=self._rounds)
        else:
            found = self._bank.search(
                question,
                namespace=_NAMESPACE,
                limit=limit,
                router=router,
                model=self._model,
                now=asked.asked_at,
            )
        route_ms = (time.perf_counter() - started) * 1e3
        ranks: dict[str, int | None] = dict.fromkeys(asked.evidence)
        for each in found:
            at, turns = self._turns[each.memory.id]
            if at == asked.conversation:
                ranks |= {turn: each.rank for turn in turns if turn in ranks}
        return Ranked(asked, ranks, route_ms)


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
