"""`mnemos eval needle`: whether facts hidden in long text are found again, and answered from.

The haystack becomes memories of a real bank in a temporary directory, one needle to a memory at most, and the
questions go through the bank's own `search`. The hay has routing keys and no KV: that is all a search reads,
and takes half of the time to make. What is recalled for an answer is read in full.
"""

import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mnemos.errors import ModelMismatchError, UsageError
from mnemos.memory.bank import MemoryBank
from mnemos.memory.evaluate_kept import Place, digest_of, kept_for_one_run, place_at
from mnemos.memory.needles import NeedleQuestion, hide, make_questions, placed
from mnemos.memory.passages import passages
from mnemos.memory.recall_measures import percentile
from mnemos.memory.records import RouterName
from mnemos.store.keys import KeyFile
from mnemos.store.records import MemoryDraft

if TYPE_CHECKING:
    from mnemos.attention.models import LanguageModel

_NAMESPACE = "needles"
_GROUP = 256
_ANSWER_TOKENS = 40
MEMORY_TOKENS = 100

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Found:
    """What came of one question: the share of its needles' memories among the first k."""

    question: NeedleQuestion
    share: float
    route_ms: float


def run(
    *,
    tokens: Sequence[int],
    model: "LanguageModel | None",
    filler: Path | None = None,
    repeats: int = 1,
    k: int = 8,
    router: RouterName = "full",
    answers: int = 12,
    kept: Path | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Mean recall by size, and by size and depth, task and kind of value.

    `model` is needed unless the router is `lexical`; then there are no answers either. `answers` questions of
    each size, spread over all, are put to an agent. Banks are left below `kept`: what is there isn't read
    again, a stopped run goes on. Raises UsageError when a size is too small for the needles or `kept` holds
    other texts or another model's traces, NotFoundError without the file, BankLockedError while another run
    is at `kept`.
    """
    questions = make_questions(repeats)
    if router != "lexical" and model is None:
        raise UsageError("only the lexical router needs no model")
    reader = None if router == "lexical" else model
    found: dict[str, list[Found]] = {}
    answered: dict[str, dict[str, int]] = {}
    memories: dict[str, int] = {}
    encoded_tokens, encode_s = 0, 0.0
    with kept_for_one_run(kept):
        for size in tokens:
            count = max(size // MEMORY_TOKENS, 1)
            texts = list(islice(passages(filler, MEMORY_TOKENS), count))
            with (
                _place(kept, size, filler, repeats) as place,
                MemoryBank.open(place.bank, keys=KeyFile(place.key)) as bank,
            ):
                holders = _fill(bank, texts, questions, place)
                if reader is None:
                    _tell(on_progress, count, count)
                else:
                    read_tokens, took_s = _read(bank, reader, place, on_progress)
                    encoded_tokens, encode_s = encoded_tokens + read_tokens, encode_s + took_s
                memories[str(size)] = count
                found[str(size)] = [_ask(bank, reader, each, holders, k, router) for each in questions]
                if reader is not None and answers:
                    answered[str(size)] = _answer(bank, reader, questions, answers, k)
    everything = [each for parts in found.values() for each in parts]
    return {
        "recall": {size: _mean(parts) for size, parts in found.items()},
        "by_depth": {
            size: _by(parts, lambda one: f"{one.question.depth:g}") for size, parts in found.items()
        },
        "by_task": {size: _by(parts, lambda one: one.question.task) for size, parts in found.items()},
        "by_value": {size: _by(parts, lambda one: one.question.kind) for size, parts in found.items()},
        "answers": answered,
        "questions": len(questions),
        "memories": memories,
        "memory_tokens": MEMORY_TOKENS,
        "k": k,
        "encode_tokens_per_s": round(encoded_tokens / encode_s, 1) if encode_s else None,
        "route_ms_p50": round(percentile([each.route_ms for each in everything], 50), 2),
        "route_ms_p95": round(percentile([each.route_ms for each in everything], 95), 2),
        "router": router,
        "filler": "made up" if filler is None else filler.name,
        "model": None if reader is None else reader.name,
    }


@contextmanager
def _place(kept: Path | None, size: int, filler: Path | None, repeats: int) -> Iterator[Place]:
    """Where the bank of a size is made or lies."""
    if kept is None:
        with TemporaryDirectory(prefix="mnemos-eval-") as folder:
            yield Place(Path(folder), {})
        return
    file = None if filler is None else digest_of(filler)
    about = {"file": file, "needles": repeats, "tokens": size, "memory_tokens": MEMORY_TOKENS}
    yield place_at(kept / str(size), about)


def _fill(
    bank: MemoryBank, texts: Sequence[str], questions: Sequence[NeedleQuestion], place: Place
) -> dict[str, str]:
    """Writes what isn't there yet; the memory of each needle by its sentence."""
    chance = random.Random(1)
    needles = [needle for each in questions for needle in (*each.needles, *each.others)]
    chance.shuffle(needles)
    hidden = placed(needles, len(texts))
    if not place.ids:
        ids: list[str] = []
        for start in range(0, len(texts), _GROUP):
            words = [
                hide(texts[at], hidden[at], chance) if at in hidden else texts[at]
                for at in range(start, min(start + _GROUP, len(texts)))
            ]
            made = bank.remember_many([MemoryDraft(each) for each in words], namespace=_NAMESPACE)
            ids += [memory.id for memory in made]
        place.keep({0: ids})
        place.ids = {0: ids}
    return {needle.sentence: place.ids[0][at] for at, needle in hidden.items()}


def _read(
    bank: MemoryBank, model: "LanguageModel", place: Place, on_progress: OnProgress | None
) -> tuple[int, float]:
    """Makes the routing keys that are missing: tokens encoded, and the seconds that took."""
    try:
        encoder = bank.recaller(model).encoder
    except ModelMismatchError:
        raise UsageError(
            f"{place.folder} was read by another model: give that one, or name another --path"
        ) from None
    lacking = [each for _, each in bank.store.pending_traces(_NAMESPACE, encoder.fingerprint)]
    known = len(place.ids[0]) - len(lacking)
    tokens, took_s = 0, 0.0
    for start in range(0, len(lacking), _GROUP):
        group = [bank.get(each, namespace=_NAMESPACE) for each in lacking[start : start + _GROUP]]
        begun = time.perf_counter()
        drafts = encoder.encode_faint(group)
        took_s += time.perf_counter() - begun
        tokens += sum(draft.tokens for draft in drafts)
        bank.store.put_traces(_NAMESPACE, drafts)
        _tell(on_progress, known + start + len(group), len(place.ids[0]))
    encoder.adopt()
    return tokens, took_s


def _tell(on_progress: OnProgress | None, done: int, total: int) -> None:
    if on_progress is not None:
        on_progress(done, total)


def _ask(
    bank: MemoryBank,
    model: "LanguageModel | None",
    asked: NeedleQuestion,
    holders: Mapping[str, str],
    k: int,
    router: RouterName,
) -> Found:
    started = time.perf_counter()
    hits = bank.search(asked.question, namespace=_NAMESPACE, limit=k, router=router, model=model)
    route_ms = (time.perf_counter() - started) * 1e3
    ids = {hit.memory.id for hit in hits}
    share = statistics.fmean(holders[needle.sentence] in ids for needle in asked.needles)
    return Found(asked, share, route_ms)


def _answer(
    bank: MemoryBank, model: "LanguageModel", questions: Sequence[NeedleQuestion], count: int, k: int
) -> dict[str, int]:
    """How many answers of the agent hold every value that was asked for, of how many."""
    from mnemos.agent.agent import Agent
    from mnemos.attention.sampling import Sampling

    chosen = [questions[at * len(questions) // count] for at in range(min(count, len(questions)))]
    sampling = Sampling(max_tokens=_ANSWER_TOKENS)
    right = 0
    for asked in chosen:
        agent = Agent(bank, namespace=_NAMESPACE, model=model, sampling=sampling, k=k, working_tokens=0)
        reply = agent.run_sync(asked.question, incognito=True)
        right += all(needle.value in reply.text for needle in asked.needles)
    return {"right": right, "asked": len(chosen)}


def _by(found: Sequence[Found], key: Callable[[Found], str]) -> dict[str, float]:
    parts: defaultdict[str, list[Found]] = defaultdict(list)
    for each in found:
        parts[key(each)].append(each)
    return {name: _mean(part) for name, part in parts.items()}


def _mean(found: Sequence[Found]) -> float:
    return round(statistics.fmean(each.share for each in found), 4)
