"""`mnemos eval read`: how much of what a model gains from memories as text it also gains from paged ones."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from mnemos.agent.prompt import PromptBuilder
from mnemos.attention.calibration import ReadingTemperature
from mnemos.attention.encode import TraceEncoder, encode_prefix
from mnemos.attention.kv import KVCache, SpanKV
from mnemos.attention.memory_codec import TraceBits, decode_kv
from mnemos.attention.models import LanguageModel
from mnemos.errors import UsageError
from mnemos.memory.bank import MemoryBank
from mnemos.memory.conversations import Conversation, Question, Turn, fitting, read_conversations
from mnemos.memory.layout import MEMORY_HEADER, render_memory
from mnemos.memory.records import Memory
from mnemos.store.keys import KeyFile

MIN_GAIN = 0.2  # of loss, from no memory to text: below it there is no gap worth a share
ANSWER_TOKENS = 128  # of an answer at most: the first ones, where memories matter most
MEMORY_TOKENS = 192  # of one memory at most, in every mode: a longer one is cut
MODES = ("none", "text", "paged")


@dataclass(frozen=True, slots=True)
class Case:
    """A question with the memories that go to every mode, in the order they were made."""

    question: Question
    turns: tuple[Turn, ...]


def run(
    model: LanguageModel,
    path: Path,
    *,
    ks: Sequence[int],
    questions: int | None = None,
    bits: TraceBits = 4,
    reading: ReadingTemperature | None = None,
    memory_tokens: int = MEMORY_TOKENS,
    answer_tokens: int = ANSWER_TOKENS,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Mean loss per token of the right answers, by mode and number of memories.

    `gap_recovered` is the share of the way from no memory to text, from mean losses; None where text gains
    under 0.2. `questions` are spread over the file. `reading` overrides the calibration. Raises UsageError
    when the file holds no question with an answer and evidence.
    """
    cases = {k: list(make_cases(path, k, questions)) for k in ks}
    if not all(cases.values()):
        raise UsageError(f"{path} has no question with an answer and evidence.")
    reader = Reader(model, bits, memory_tokens, answer_tokens)
    total = sum(len(some) for some in cases.values())
    done = 0
    loss: dict[str, dict[str, float]] = {mode: {} for mode in MODES}
    recovered: dict[str, float | None] = {}
    better: dict[str, float] = {}
    for k, some in cases.items():
        rows: list[tuple[float, ...]] = []
        for case in some:
            rows.append(reader.losses(case, reading))
            done += 1
            if on_progress is not None:
                on_progress(done, total)
        means = [statistics.fmean(column) for column in zip(*rows, strict=True)]
        for mode, mean in zip(MODES, means, strict=True):
            loss[mode][str(k)] = round(mean, 4)
        gain = means[0] - means[1]
        recovered[str(k)] = round((means[0] - means[2]) / gain, 4) if gain >= MIN_GAIN else None
        better[str(k)] = round(statistics.fmean(row[2] <= row[1] for row in rows), 3)
    return {
        "gap_recovered": recovered,
        "loss": loss,
        "paged_no_worse": better,
        "questions": {str(k): len(some) for k, some in cases.items()},
        "file": path.name,
        "model": model.name,
        "bits": bits,
        "answer_tokens": answer_tokens,
        "memory_tokens": memory_tokens,
    }


def make_cases(path: Path, k: int, questions: int | None) -> Iterator[Case]:
    """The gold memories of each question and the best-ranked wrong ones, `k` together, in their order."""
    return cases_of(list(read_conversations(path)), k, questions)


def cases_of(conversations: Sequence[Conversation], k: int, questions: int | None) -> Iterator[Case]:
    """As `make_cases`, of conversations that were read already."""
    asked = [
        (at, question)
        for at, conversation in enumerate(conversations)
        for question in conversation.questions
        if question.answer.strip() and question.evidence
    ]
    if questions is not None and len(asked) > questions:
        asked = [asked[index * len(asked) // questions] for index in range(questions)]
    with TemporaryDirectory(prefix="mnemos-eval-") as folder:
        keys = KeyFile(Path(folder) / "bank.key")
        with MemoryBank.open(Path(folder) / "bank", keys=keys) as bank:
            ranked: dict[int, dict[str, str]] = {}
            for at, question in asked:
                if at not in ranked:
                    ranked[at] = _remember(bank, conversations[at], str(at))
                turns = choose(bank, conversations[at], question, k, ranked[at], str(at))
                if turns:
                    yield Case(question, turns)


def _remember(bank: MemoryBank, conversation: Conversation, namespace: str) -> dict[str, str]:
    """Memory id to turn id."""
    from mnemos.store.records import MemoryDraft

    drafts = [MemoryDraft(fitting(turn.text), speaker=turn.speaker or None) for turn in conversation.memories]
    made = bank.remember_many(drafts, namespace=namespace)
    return {memory.id: turn.id for memory, turn in zip(made, conversation.memories, strict=True)}


def choose(
    bank: MemoryBank,
    conversation: Conversation,
    question: Question,
    k: int,
    turn_ids: dict[str, str],
    namespace: str,
) -> tuple[Turn, ...]:
    """Gold first, then what BM25 ranks best, then the latest, until there are `k`."""
    visible = {turn.id: (place, turn) for place, turn in enumerate(conversation.visible(question))}
    gold = [turn_id for turn_id in question.evidence if turn_id in visible]
    if not gold:
        return ()
    found = bank.search(question.question, namespace=namespace, limit=20 * k, router="lexical")
    wrong = [turn_ids[recalled.memory.id] for recalled in found]
    order = dict.fromkeys([*gold, *wrong, *reversed(visible)])
    kept = [turn_id for turn_id in order if turn_id in visible][:k]
    return tuple(turn for _, turn in sorted(visible[turn_id] for turn_id in kept))


class Reader:
    """Losses of one model, its traces made once each."""

    def __init__(
        self,
        model: LanguageModel,
        bits: TraceBits,
        memory_tokens: int = MEMORY_TOKENS,
        answer_tokens: int = ANSWER_TOKENS,
    ) -> None:
        model.require_full_resolution()
        self._model = model
        self._memory_tokens = memory_tokens
        self._answer_tokens = answer_tokens
        self._prompts = PromptBuilder(model, None)
        head = [*self._prompts.turn.system_head, *model.tokenizer.encode(MEMORY_HEADER)]
        self.prefix = encode_prefix(model.decoder, head)
        self._head = head
        self._encoder = TraceEncoder(model.decoder, model.calibration, self.prefix, bits=bits)
        self._traces: dict[str, bytes] = {}

    def losses(self, case: Case, reading: ReadingTemperature | None) -> tuple[float, ...]:
        """Loss per answer token with no memory, with text, and paged."""
        answer, question = self._answer(case), case.question.question
        none = [*self._prompts.without_memories(), *self._asked(question)]
        return (
            self._loss(self._new_cache(len(none)), none, answer),
            self._loss(*self.as_text(case.turns, question), answer),
            self.paged_loss(case, reading),
        )

    def paged_loss(self, case: Case, reading: ReadingTemperature | None) -> float:
        """Loss per answer token with the memories paged in."""
        return self._loss(*self.as_paged(case.turns, case.question.question, reading), self._answer(case))

    def _answer(self, case: Case) -> list[int]:
        return self._model.tokenizer.encode(case.question.answer)[: self._answer_tokens]

    def as_text(self, turns: Sequence[Turn], question: str) -> tuple[KVCache, list[int]]:
        """An empty cache, and the prompt with the memories' lines in it."""
        lines = [token for turn in turns for token in self._line(turn)]
        tokens = [*self._head, *lines, *self._prompts.with_memories(), *self._asked(question)]
        return self._new_cache(len(tokens)), tokens

    def as_paged(
        self, turns: Sequence[Turn], question: str, reading: ReadingTemperature | None
    ) -> tuple[KVCache, list[int]]:
        """A cache with the memories paged in, and the prompt that goes behind them."""
        spans = self._spans([self._line(turn) for turn in turns])
        tokens = [*self._prompts.with_memories(), *self._asked(question)]
        cache = self._new_cache(self.prefix.tokens + sum(span.tokens for span in spans) + len(tokens))
        chosen = reading or self._model.calibration.reading_for(len(spans))
        cache.load_prefix(self.prefix)
        cache.page_in(
            spans,
            temperature=chosen.temperature,
            mass_scale=chosen.mass_scale,
            stride=chosen.stride,
        )
        return cache, tokens

    def _asked(self, question: str) -> list[int]:
        return [*self._prompts.message(question), *self._prompts.turn.reply_head]

    def _new_cache(self, tokens: int) -> KVCache:
        return self._model.decoder.new_cache(tokens + self._answer_tokens)

    def _line(self, turn: Turn) -> list[int]:
        memory = Memory(
            id=turn.id,
            namespace="eval",
            kind="note",
            text=turn.text or "-",
            speaker=turn.speaker or None,
            created_at=turn.created_at,
        )
        encode = self._model.tokenizer.encode
        return [token for line in render_memory(memory) for token in encode(line)][: self._memory_tokens]

    def _spans(self, lines: Sequence[Sequence[int]]) -> list[SpanKV]:
        config, decoder = self._model.config, self._model.decoder
        spans: list[SpanKV] = []
        for line in lines:
            name = repr(line)
            if name not in self._traces:
                self._traces[name] = self._encoder.encode([line]).kv
            spans += decode_kv(self._traces[name], config, decoder.dtype)
        return spans

    @torch.inference_mode()
    def _loss(self, cache: KVCache, prompt: Sequence[int], answer: Sequence[int]) -> float:
        decoder = self._model.decoder
        logits = decoder.forward(prompt, cache)[None]  # [1, vocab]
        if len(answer) > 1:
            logits = torch.cat([logits, decoder.forward_all(answer[:-1], cache)])  # [answer, vocab]
        loss = torch.nn.functional.cross_entropy(logits.cpu(), torch.tensor(answer))
        return math.inf if loss.isnan() else float(loss)
