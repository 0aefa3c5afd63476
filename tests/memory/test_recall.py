"""The bank with the default model: traces, routing, paging, and what forgetting leaves of them."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mnemos import MemoryBank
from mnemos.attention.models import LanguageModel
from mnemos.errors import ModelMismatchError
from mnemos.memory.recall import Recall, Recaller

pytestmark = pytest.mark.model

FACTS = (
    "My sister Clara works as a nurse in Leeds.",
    "My dog is called Biscuit.",
    "I am allergic to peanuts.",
    "I play the cello in an amateur orchestra.",
    "My brother Tom lives in Oslo.",
    "The bus was late again this morning.",
)


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[MemoryBank]:
    with MemoryBank.open(tmp_path / "bank") as opened:
        for fact in FACTS:
            opened.remember(fact)
        yield opened


def recalled(recaller: Recaller, query: str, *, k: int = 4, namespace: str = "default") -> Recall:
    words = recaller.model.tokenizer.encode(query)
    context = recaller.new_context(recaller.encoder.prefix.tokens + len(words))
    return recaller.recall(query, context, words, namespace=namespace, k=k)


@pytest.mark.parametrize(
    ("query", "fact"),
    [
        ("What does Clara do for a living?", 0),
        ("What is my dog's name?", 1),
        ("Am I allergic to anything?", 2),
        ("Which instrument do I play?", 3),
        ("Where does Tom live?", 4),
    ],
)
def test_full_search_puts_the_right_memory_first(
    bank: MemoryBank, language_model: LanguageModel, query: str, fact: int
) -> None:
    found = bank.search(query, model=language_model)
    assert found[0].memory.text == FACTS[fact]
    assert {"mass", "lexical"} <= set(found[0].signals)
    assert [r.rank for r in found] == list(range(1, len(FACTS) + 1))
    assert sorted((r.score for r in found), reverse=True) == [r.score for r in found]


def test_latent_search_leaves_the_words_out(bank: MemoryBank, language_model: LanguageModel) -> None:
    found = bank.search("What is my dog's name?", router="latent", model=language_model)
    assert "lexical" not in found[0].signals


def test_small_talk_recalls_nothing(bank: MemoryBank, language_model: LanguageModel) -> None:
    bank.encode_pending(language_model)
    assert recalled(bank.recaller(language_model), "Write a haiku.").memories == ()


def test_the_same_question_asked_before_is_not_recalled(
    bank: MemoryBank, language_model: LanguageModel
) -> None:
    question = "What does Clara do for a living?"
    bank.complete_exchange(bank.begin_exchange(question, namespace="default", session_id=None), "I wonder.")
    bank.encode_pending(language_model)
    found = [
        r.memory.text
        for r in recalled(bank.recaller(language_model), "what does clara do for a living").memories
    ]
    assert found[0] == FACTS[0]
    assert question not in found
    assert question in [r.memory.text for r in bank.search(question, model=language_model)]


def test_recall_pages_in_what_was_encoded(bank: MemoryBank, language_model: LanguageModel) -> None:
    assert bank.encode_pending(language_model) == len(FACTS)
    listed = bank.list()
    assert set(bank.tiers(listed).values()) == {"disk"} and bank.held_bytes() in ({}, {"host": 0})
    recaller = bank.recaller(language_model)
    result = recalled(recaller, "What does Clara do for a living?")
    assert result.memories[0].memory.text == FACTS[0]
    assert bank.tiers(listed)[result.memories[0].memory.id] == "host"
    assert bank.held_bytes() == {"host": recaller.pager.bytes} and recaller.pager.bytes > 0
    assert result.tokens == sum(span.tokens for span in result.spans) > 0
    assert len(result.owners) == len(result.spans)
    cold = recaller.pager.misses
    recalled(recaller, "What does Clara do for a living?")
    assert recaller.pager.misses == cold
    assert recaller.pager.hits > 0


def test_traces_are_made_once_and_by_the_next_process(tmp_path: Path, language_model: LanguageModel) -> None:
    with MemoryBank.open(tmp_path / "bank") as bank:
        bank.remember(FACTS[0])
        assert bank.encode_pending(language_model) == 1
        bank.remember(FACTS[1])
    with MemoryBank.open(tmp_path / "bank") as bank:
        assert bank.stats().pending == 1
        assert bank.encode_pending(language_model) == 1
        assert bank.encode_pending(language_model) == 0
        assert all(memory.fidelity == "vivid" for memory in bank.list())


def test_a_trace_equals_that_of_a_bank_which_never_held_the_others(
    tmp_path: Path, bank: MemoryBank, language_model: LanguageModel
) -> None:
    bank.encode_pending(language_model)
    (kept,) = bank.list(matching="cello")
    bank.forget(bank.plan_forget(matching="Clara"))
    with MemoryBank.open(tmp_path / "other") as other:
        alone = other.remember(FACTS[3], created_at=kept.created_at)
        other.encode_pending(language_model)
        assert other.store.get_kv("default", alone.id) == bank.store.get_kv("default", kept.id)
        assert other.store.get_route("default", alone.id) == bank.store.get_route("default", kept.id)


def test_after_forgetting_search_and_scores_are_those_of_a_bank_that_never_held_it(
    tmp_path: Path, bank: MemoryBank, language_model: LanguageModel
) -> None:
    queries = ("What does Clara do?", "Where does Tom live?", "nurse")
    bank.search(queries[0], model=language_model)  # so that caches hold what is to be forgotten
    recalled(bank.recaller(language_model), queries[0])
    bank.forget(bank.plan_forget(matching="Clara"))
    with MemoryBank.open(tmp_path / "other") as other:
        for memory in bank.list(newest_first=False):
            other.remember(memory.text, created_at=memory.created_at)
        for query in queries:
            left = [
                (r.memory.text, r.score, dict(r.signals)) for r in bank.search(query, model=language_model)
            ]
            never = [
                (r.memory.text, r.score, dict(r.signals)) for r in other.search(query, model=language_model)
            ]
            assert left == never


def test_forgetting_overwrites_what_is_held_in_memory(
    bank: MemoryBank, language_model: LanguageModel
) -> None:
    bank.encode_pending(language_model)
    result = recalled(bank.recaller(language_model), "What does Clara do for a living?")
    span = result.spans[result.owners.index(0)]
    bank.forget(bank.plan_forget(ids=[result.memories[0].memory.id]))
    assert not span.k.any()
    assert not span.v.any()


def test_an_erase_elsewhere_empties_the_caches_here(tmp_path: Path, language_model: LanguageModel) -> None:
    with MemoryBank.open(tmp_path / "bank") as here:
        fact = here.remember(FACTS[0])
        here.encode_pending(language_model)
        recaller = here.recaller(language_model)
        assert recalled(recaller, "What does Clara do?").memories
        with MemoryBank.open(tmp_path / "bank") as elsewhere:
            elsewhere.forget(elsewhere.plan_forget(ids=[fact.id]))
        assert recalled(recaller, "What does Clara do?").memories == ()
        assert recaller.pager.bytes == 0


def test_a_bank_of_another_model_is_refused_by_fingerprint(
    bank: MemoryBank, language_model: LanguageModel
) -> None:
    bank.encode_pending(language_model)
    other = dataclasses.replace(language_model, fingerprint="0" * 64, name="other")
    with pytest.raises(ModelMismatchError, match="bank reencode"):
        bank.recaller(other)


def test_reencoding_gives_the_bank_to_another_model(bank: MemoryBank, language_model: LanguageModel) -> None:
    bank.encode_pending(language_model)
    other = dataclasses.replace(language_model, fingerprint="0" * 64, name="other")
    assert bank.reencode(other) == len(FACTS)
    assert bank.search("What does Clara do?", model=other)[0].memory.text == FACTS[0]
    with pytest.raises(ModelMismatchError, match="by other"):
        bank.recaller(language_model)
    assert bank.verify(deep=True).ok


def test_a_reply_is_a_span_of_its_own(bank: MemoryBank, language_model: LanguageModel) -> None:
    exchange = bank.begin_exchange("I live in Porto.", namespace="default", session_id=None)
    bank.complete_exchange(exchange, "Porto is a city in Portugal.")
    bank.encode_pending(language_model)
    recaller = bank.recaller(language_model)
    (lines,) = [recaller.encoder.lines_of(bank.get(exchange.id))]
    (block,) = recaller.pager.page("default", [exchange.id])
    assert [span.tokens for span in block] == [len(line) for line in lines]
    assert len(lines) == 2


def test_a_query_in_another_script_and_an_empty_one(bank: MemoryBank, language_model: LanguageModel) -> None:
    assert len(bank.search("как зовут мою собаку", model=language_model)) == len(FACTS)
    assert bank.search("", model=language_model) == []
    assert torch.isfinite(torch.tensor([r.score for r in bank.search("x", model=language_model)])).all()
