"""`mnemos eval recall`: how much of the evidence of questions a search brings back.

Conversations become memories of a real bank in a temporary directory, and questions go through its own
`search`. Memories that don't exist yet when a question is asked (`before`) are hidden for it.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from mnemos.errors import ModelMismatchError, UsageError
from mnemos.memory.bank import MemoryBank
from mnemos.memory.conversations import Conversation, Turn, fitting, read_conversations
from mnemos.memory.evaluate_kept import kept_for_one_run, place_of
from mnemos.memory.recall_measures import Asked, Ranked, by_category, exported, measured, percentile
from mnemos.memory.records import RecalledMemory, RouterName
from mnemos.memory.rounds import search_in_rounds
from mnemos.store.keys import KeyFile
from mnemos.store.records import MemoryDraft

if TYPE_CHECKING:
    from mnemos.attention.embedder import Embedder
    from mnemos.attention.models import LanguageModel
    from mnemos.memory.rival_recall import Rivals

Unit = Literal["turn", "pair"]
UNITS: tuple[Unit, ...] = get_args(Unit)
DEFAULT_KS = (1, 5, 10, 16, 20)
_NAMESPACE = "eval"
_GROUP = 64  # traces written together


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
    rival: str | None = None,
    export: Path | None = None,
    kept: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Recall and hit rate at each of `ks`, with rates and latencies.

    With `rounds` above 1, memories are recalled as an agent with so many rounds does, which share one `k`.

    `model` is needed unless the router is `lexical`. `conversations` takes the first ones, `questions` that
    many of theirs, spread evenly. `merge` puts all conversations into one namespace. With the `rival` minilm
    the same questions are put to `rival_recall.RIVALS` too. `export` becomes a file of JSON lines with ranks
    by id, never words. Banks are left below `kept`: what is there isn't read again, a stopped run goes on.
    `on_progress` is told of every memory and every question. Raises NotFoundError, UsageError when the file
    holds no question with evidence or `kept` is another file's or model's, BankLockedError while another run
    is at `kept`, and ModelError without the rival's weights.
    """
    if rounds > 1 and (len(ks) > 1 or router != "full"):
        raise UsageError("Rounds of recall share one k and are made by the full router: give one --k.")
    taken = list(islice(read_conversations(path), conversations))
    all_asked = [each for at, one in enumerate(taken) for each in askable(at, one)]
    asked = spread(all_asked, questions)
    if not asked:
        raise UsageError(f"{path} has no question with evidence that exists when it is asked.")
    if export is not None:
        export.touch()  # a place that can't be written to is told before the work, not after it
    embedder = None
    if rival is not None:
        from mnemos.memory.rival_recall import encoder

        embedder = encoder()
    tally = Tally()
    wanted = _wanted(taken, asked if kept is None else all_asked, merge)
    asking = {each.conversation for each in asked}
    steps = _Steps(
        [wanted[at] for at in sorted(wanted) if merge or at in asking], len(asked), unit, on_progress
    )
    groups = [range(len(taken))] if merge else [range(at, at + 1) for at in range(len(taken))]
    with kept_for_one_run(kept):
        for group in groups:
            of_group = [each for each in asked if each.conversation in group]
            if not of_group:
                continue
            with (
                place_of(kept, path, group, unit=unit, merge=merge) as place,
                MemoryBank.open(place.bank, keys=KeyFile(place.key)) as bank,
            ):
                held = Held(bank, None if router == "lexical" else model, rounds, embedder)
                for at in group:
                    held.write(at, wanted[at], unit, place.ids.get(at))
                if not place.ids:
                    place.keep(held.ids)
                try:
                    held.encode(tally, steps.take)
                except ModelMismatchError:
                    raise UsageError(
                        f"{place.folder} was read by another model: give that one, or name another --path"
                    ) from None
                for ranked in held.ask(of_group, max(ks), router):
                    tally.ranked.append(ranked)
                    steps.take()
    if export is not None:
        with export.open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(line) + "\n" for line in exported(taken, tally.ranked))
    rivals = {
        name: measured([replace(each, ranks=each.rivals[name]) for each in tally.ranked], ks)
        for name in tally.ranked[0].rivals
    }
    return {
        **measured(tally.ranked, ks),
        **({"rivals": rivals} if rivals else {}),
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


def _wanted(
    taken: Sequence[Conversation], asked: Sequence[Asked], merge: bool
) -> dict[int, tuple[Turn, ...]]:
    """The turns of each conversation that questions may be asked of: all of them when searched together."""
    last: dict[int, int] = {}
    for each in asked:
        last[each.conversation] = max(last.get(each.conversation, 0), each.visible)
    return {at: one.memories if merge else one.memories[: last.get(at, 0)] for at, one in enumerate(taken)}


class _Steps:
    """Counts memories and questions for whoever watches."""

    def __init__(
        self,
        parts: Sequence[Sequence[Turn]],
        questions: int,
        unit: Unit,
        tell: Callable[[int, int], None] | None,
    ) -> None:
        self._done, self._tell = 0, tell
        self._total = questions + sum(len(list(units(part, unit))) for part in parts)

    def take(self) -> None:
        self._done = min(self._done + 1, self._total)
        if self._tell is not None:
            self._tell(self._done, self._total)


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

    def __init__(
        self,
        bank: MemoryBank,
        model: "LanguageModel | None",
        rounds: int = 1,
        embedder: "Embedder | None" = None,
    ) -> None:
        """With an `embedder` the questions are put to the rivals too."""
        self._bank = bank
        self._rivals: Rivals | None = None
        if embedder is not None:
            from mnemos.memory import rival_recall

            self._rivals = rival_recall.Rivals(bank, _NAMESPACE, embedder)
        self._model = model
        self._rounds = rounds
        self._turns: dict[str, tuple[int, tuple[str, ...]]] = {}  # memory id -> conversation, turn ids
        self._made: dict[int, list[tuple[str, int]]] = {}  # of each conversation: memory id, turns up to it

    @property
    def ids(self) -> dict[int, list[str]]:
        """Of the memories that each conversation became."""
        return {at: [memory_id for memory_id, _ in made] for at, made in self._made.items()}

    def write(self, at: int, turns: Sequence[Turn], unit: Unit, known: Sequence[str] | None = None) -> None:
        """`known` are the memories that they became in an earlier run."""
        parts = list(units(turns, unit))
        if known is None:
            # As an agent has them: what was said at one time of a conversation is a session.
            drafts = [replace(draft_of(part), session_id=f"{at}/{part[0].time}") for part in parts]
            made = self._bank.remember_many(drafts, namespace=_NAMESPACE)
        else:
            made = [self._bank.get(memory_id, namespace=_NAMESPACE) for memory_id in known]
            for hidden in (memory for memory in made if memory.hidden):  # by a run that was stopped
                self._bank.unhide(hidden.id, namespace=_NAMESPACE)
        upto = 0
        self._made[at] = []
        for memory, part in zip(made, parts, strict=True):
            upto += len(part)
            self._turns[memory.id] = (at, tuple(turn.id for turn in part))
            self._made[at].append((memory.id, upto))
        if self._rivals is not None:
            self._rivals.add(made)

    def encode(self, tally: Tally, on_memory: Callable[[], None] = lambda: None) -> None:
        """Make the traces, and count what that took. Of a single round routing keys are all that is read."""
        tally.memories += len(self._turns)
        if self._model is None:
            for _ in self._turns:
                on_memory()
            return
        self._bank.recaller(self._model)  # the frozen prefix is no memory's cost
        if self._rounds > 1 or self._model.config.msa is not None:
            started = time.perf_counter()
            self._bank.encode_pending(self._model, namespace=_NAMESPACE)
            tally.encode_s += time.perf_counter() - started
            tally.tokens += self._bank.stats(_NAMESPACE).tokens
            return
        from mnemos.memory.word_index import WordIndex

        encoder = self._bank.recaller(self._model).encoder
        pending = self._bank.store.pending_traces(_NAMESPACE, encoder.fingerprint)
        lacking = {memory_id for _, memory_id in pending}
        for _ in range(len(self._turns) - len(lacking)):
            on_memory()
        turns = [memory_id for memory_id in self._turns if memory_id in lacking]
        for start in range(0, len(turns), _GROUP):
            part = turns[start : start + _GROUP]
            memories = [self._bank.get(each, namespace=_NAMESPACE) for each in part]
            drafts = []
            for memory in memories:
                started = time.perf_counter()
                drafts += encoder.encode_faint([memory])
                tally.encode_s += time.perf_counter() - started
                on_memory()
            tally.tokens += sum(draft.tokens for draft in drafts)
            self._bank.store.put_traces(_NAMESPACE, drafts)
        encoder.adopt()
        vectors = self._bank.recaller(self._model).vectors
        if isinstance(vectors, WordIndex):  # of memories that were read before with another encoder
            vectors.complete(_NAMESPACE)

    def ask(self, asked: Sequence[Asked], limit: int, router: RouterName) -> Iterator[Ranked]:
        """The latest questions of a conversation first, so that each memory is hidden once."""
        for at, made in self._made.items():
            left, hidden = list(made), list[str]()
            own = [each for each in asked if each.conversation == at]
            for each in sorted(own, key=lambda one: -one.visible):
                while left and left[-1][1] > each.visible:
                    hidden.append(left.pop()[0])
                    self._bank.hide(hidden[-1], namespace=_NAMESPACE)
                yield self._search(each, limit, router, hidden)
            for memory_id in hidden:
                self._bank.unhide(memory_id, namespace=_NAMESPACE)

    def _search(self, asked: Asked, limit: int, router: RouterName, hidden: Sequence[str]) -> Ranked:
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
        ranks = self._ranks(asked, [each.memory.id for each in found])
        if self._rivals is None:
            return Ranked(asked, ranks, route_ms)
        theirs = self._rivals.rankings(question, set(hidden))
        rivals = {name: self._ranks(asked, ids[:limit]) for name, ids in theirs.items()}
        return Ranked(asked, ranks, route_ms, rivals)

    def _ranks(self, asked: Asked, ids: Sequence[str]) -> dict[str, int | None]:
        """The rank of each turn of evidence among memories, best first."""
        ranks: dict[str, int | None] = dict.fromkeys(asked.evidence)
        for rank, memory_id in enumerate(ids, 1):
            at, turns = self._turns[memory_id]
            if at == asked.conversation:
                ranks |= {turn: rank for turn in turns if turn in ranks}
        return ranks
