"""`mnemos eval facts`: questions about simple personal facts, answered from memories as text and paged."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from mnemos.agent.evaluate_reading import Reader
from mnemos.attention.calibration import ReadingTemperature
from mnemos.attention.generate import generate, text_pieces
from mnemos.attention.kv import KVCache
from mnemos.attention.models import LanguageModel
from mnemos.attention.sampling import Sampling
from mnemos.attention.tokenizer import Detokenizer
from mnemos.memory.conversations import Turn

_SAMPLING = Sampling(max_tokens=24, repetition_penalty=1.1)


@dataclass(frozen=True, slots=True)
class Fact:
    """What a person told, a question about it, and the word that a right answer has."""

    text: str
    question: str
    answer: str


@cache
def facts() -> tuple[Fact, ...]:
    """The facts that ship with the package: none is the answer to another's question."""
    lines = files("mnemos.agent").joinpath("eval_data", "facts.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return tuple(Fact(row["fact"], row["question"], row["answer"]) for row in rows)


def run(
    model: LanguageModel,
    *,
    ks: Sequence[int],
    questions: int | None = None,
    reading: ReadingTemperature | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """How many questions are answered right, by mode and number of memories.

    Of the memories one holds the answer and the others are facts drawn at random, the same for every mode,
    in random order. `reading` overrides the calibration.
    """
    asked = facts()[:questions]
    reader = Reader(model, 4)
    right: dict[str, dict[str, int]] = {"text": {}, "paged": {}}
    total, done = len(asked) * len(ks), 0
    for k in ks:
        chance = random.Random(k)
        counts = dict.fromkeys(right, 0)
        for fact in asked:
            others = chance.sample([each for each in facts() if each is not fact], k - 1)
            place = chance.randrange(k)
            shown = [*others[:place], fact, *others[place:]]
            turns = [_turn(each) for each in shown]
            for mode, prompt in (
                ("text", reader.as_text(turns, fact.question)),
                ("paged", reader.as_paged(turns, fact.question, reading)),
            ):
                counts[mode] += fact.answer in _reply(model, *prompt).casefold()
            done += 1
            if on_progress is not None:
                on_progress(done, total)
        for mode, count in counts.items():
            right[mode][str(k)] = count
    return {"right": right, "questions": len(asked), "model": model.name, "bits": 4}


def _turn(fact: Fact) -> Turn:
    day = facts().index(fact) % 28 + 1
    return Turn(id=fact.text, speaker="User", time=f"2026-03-{day:02d}", text=fact.text)


def _reply(model: LanguageModel, cache: KVCache, tokens: Sequence[int]) -> str:
    logits = model.decoder.forward(tokens, cache)
    generation = generate(model.decoder, cache, logits, _SAMPLING, eos_ids=model.tokenizer.eos_ids)
    return "".join(text_pieces(generation, Detokenizer(model.tokenizer), ()))
