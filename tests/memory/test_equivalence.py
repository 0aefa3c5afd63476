"""After forgetting, what a model sees of a bank equals what it sees of one that never held the forgotten:
routing scores and logits, bit for bit.
"""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from mnemos import MemoryBank
from mnemos.attention.models import LanguageModel
from mnemos.memory.records import Memory

WORDS = ("kettle", "harbour", "running", "blue", "nurse", "boat", "green", "Clara", "Oslo", "cello")
QUERIES = ("What does Clara do?", "the blue boat", "kettle or cello", "Oslo")


def looks(bank: MemoryBank, model: LanguageModel) -> list[Any]:
    """Of each query: scores and signals of each memory, what is paged in, and the next token's logits."""
    recaller = bank.recaller(model)
    place = {
        memory.id: index for index, memory in enumerate(bank.list(include_hidden=True, newest_first=False))
    }
    seen: list[Any] = []
    for query in QUERIES:
        found = bank.search(query, model=model, limit=100)
        words = model.tokenizer.encode(query)
        context = recaller.new_context(recaller.encoder.prefix.tokens + len(words))
        recall = recaller.recall(query, context, words, namespace="default", k=6, selective=False)
        cache = recaller.new_context(recaller.encoder.prefix.tokens + recall.tokens + len(words))
        cache.page_in(recall.spans, temperature=0.9, mass_scale=0.9)
        logits = model.decoder.forward(words, cache)
        seen.append([(place[r.memory.id], r.score, dict(r.signals)) for r in found])
        seen.append([(place[r.memory.id], r.score) for r in recall.memories])
        seen.append(
            [
                (span.tokens, float(span.k.double().sum()), float(span.v.double().sum()))
                for span in recall.spans
            ]
        )
        seen.append(logits.tolist())
    return seen


def converse(bank: MemoryBank, chance: random.Random, model: LanguageModel) -> None:
    """An exchange whose reply was made with what the model recalls for it."""
    text = f"{chance.choice(WORDS)} and {chance.choice(WORDS)} {chance.random():.6f}?"
    exchange = bank.begin_exchange(text, namespace="default", session_id=None)
    recalled = bank.search(text, model=model, limit=2)
    bank.complete_exchange(
        exchange,
        f"Surely {chance.choice(WORDS)}.",
        recalled=[one for one in recalled if one.memory.id != exchange.id],
    )


def forget(bank: MemoryBank, chance: random.Random) -> None:
    held = bank.list(include_hidden=True)
    chosen = [memory.id for memory in chance.sample(held, min(len(held), chance.randint(1, 2)))]
    bank.forget(bank.plan_forget(ids=chosen, cascade=chance.choice(("closure", "none"))))


def never_held(bank: MemoryBank, other: MemoryBank) -> None:
    """What is left of one bank, written into an empty one."""
    ids: dict[str, str] = {}
    kept: list[Memory] = list(bank.list(include_hidden=True, newest_first=False))
    for memory in kept:
        fresh = other.remember(
            memory.text,
            kind=memory.kind,
            speaker=memory.speaker,
            tags=memory.tags,
            created_at=memory.created_at,
        )
        ids[memory.id] = fresh.id
    for memory in kept:
        if memory.reply is not None:
            uses = bank.store.uses_of("default", memory.id)
            other.store.complete(
                "default",
                ids[memory.id],
                memory.reply,
                uses=[
                    type(use)(ids[use.memory_id], use.rank, use.score, use.signals, use.attention, use.cited)
                    for use in uses
                ],
            )
        if memory.hidden:
            other.hide(ids[memory.id])


@pytest.mark.parametrize("seed", range(2))
def test_scores_and_logits_are_those_of_a_bank_that_never_held_it(
    tmp_path: Path, tiny_model: LanguageModel, seed: int
) -> None:
    chance = random.Random(seed)
    with MemoryBank.open(tmp_path / "bank") as bank:
        for number in range(10):
            bank.remember(f"{' '.join(chance.choices(WORDS, k=4))} {number}", tags=[chance.choice("xy")])
        before = looks(bank, tiny_model)  # and its caches hold all of it
        for _ in range(6):
            chance.choice((converse, lambda b, c, _m: forget(b, c)))(bank, chance, tiny_model)
        converse(bank, chance, tiny_model)
        forget(bank, chance)
        bank.hide(chance.choice(bank.list()).id)
        left = looks(bank, tiny_model)
        with MemoryBank.open(tmp_path / "other") as other:
            never_held(bank, other)
            assert looks(other, tiny_model) == left != before
            assert other.store.content_digest("default") == bank.store.content_digest("default")
        bank.close()
    with MemoryBank.open(tmp_path / "bank") as again:
        assert looks(again, tiny_model) == left


def test_one_memory_more_shows_in_scores_and_logits(tmp_path: Path, tiny_model: LanguageModel) -> None:
    """What the comparison rests on: it tells two banks apart that differ by one memory."""
    with MemoryBank.open(tmp_path / "one") as one, MemoryBank.open(tmp_path / "two") as two:
        for bank in (one, two):
            for text in ("the blue boat", "Clara is a nurse", "a kettle in Oslo"):
                bank.remember(text)
        assert looks(one, tiny_model) == looks(two, tiny_model)
        two.remember("the cello of Clara")
        different = [
            left != right for left, right in zip(looks(one, tiny_model), looks(two, tiny_model), strict=True)
        ]
        assert all(different)
        assert torch.isfinite(torch.tensor(looks(one, tiny_model)[3])).all()
