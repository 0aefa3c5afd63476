"""Recall in rounds on a small random model: what it asks for, and what it keeps to."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mnemos import MemoryBank
from mnemos.attention.kv import KVCache
from mnemos.attention.models import LanguageModel
from mnemos.memory.recall import Recall, Recaller
from mnemos.memory.rounds import recall_in_rounds

# A chain: the question shares a word with the first link, that with the second, the question not with that.
CHAIN = ["Clara works at the Brightwater clinic.", "Brightwater lies behind the old tannery."]
NOISE = [f"Note {i}: it rained on day {i}." for i in range(12)]
QUESTION = "Where does Clara go every morning?"


@pytest.fixture
def recaller(tmp_path: Path, tiny_model: LanguageModel) -> Iterator[Recaller]:
    with MemoryBank.open(tmp_path / "bank") as bank:
        for text in [*NOISE[:6], *CHAIN, *NOISE[6:]]:
            bank.remember(text)
        found = bank.recaller(tiny_model)
        found.encode_pending()
        yield found


def context_of(recaller: Recaller, room: int = 600) -> tuple[KVCache, list[int]]:
    words = recaller.model.tokenizer.encode(QUESTION)
    return recaller.new_context(recaller.encoder.prefix.tokens + room), words


def recalled(
    recaller: Recaller, rounds: int, k: int = 4, *, selective: bool = True, room: int = 600
) -> Recall:
    context, words = context_of(recaller, room)
    before = context.length
    found = recall_in_rounds(
        recaller, QUESTION, context, words, namespace="default", rounds=rounds, k=k, selective=selective
    )
    assert context.length == before, "the context is left as it was"
    return found


def texts(found: Recall) -> list[str]:
    return [each.memory.text for each in found.memories]


def test_a_second_round_follows_what_the_first_found(recaller: Recaller) -> None:
    assert CHAIN[1] not in texts(recalled(recaller, 1))
    found = recalled(recaller, 2)
    assert texts(found)[0] == CHAIN[0]
    assert CHAIN[1] in texts(found)
    assert [each.rank for each in found.memories] == list(range(1, len(found.memories) + 1))
    assert len(found.spans) == len(found.owners)
    assert set(found.owners) == set(range(len(found.memories)))
    assert found.tokens == sum(span.tokens for span in found.spans) > 0


def test_one_round_is_plain_recall(recaller: Recaller) -> None:
    context, words = context_of(recaller)
    plain = recaller.recall(QUESTION, context, words, namespace="default", k=4)
    once = recalled(recaller, 1)
    assert texts(once) == texts(plain)
    assert [each.score for each in once.memories] == [each.score for each in plain.memories]


@pytest.mark.parametrize("k", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_rounds_share_the_places_and_repeat_nothing(recaller: Recaller, k: int, rounds: int) -> None:
    found = texts(recalled(recaller, rounds, k, selective=False))
    assert len(found) == len(set(found)) == k


def test_a_full_context_still_recalls(recaller: Recaller) -> None:
    words = recaller.model.tokenizer.encode(QUESTION)
    assert CHAIN[1] in texts(recalled(recaller, 2, room=len(words)))


def test_an_empty_bank_has_nothing_in_any_round(tmp_path: Path, tiny_model: LanguageModel) -> None:
    with MemoryBank.open(tmp_path / "empty") as bank:
        assert recalled(bank.recaller(tiny_model), 3).memories == ()
