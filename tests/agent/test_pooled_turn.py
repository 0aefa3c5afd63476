"""Turns on an MSA checkpoint over a real bank."""

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import pytest

from mnemos import Agent, MemoryBank
from mnemos.agent import evaluate_facts
from mnemos.agent.events import Recalled, RecallStarted, Reply, Stored, TokenDelta
from mnemos.attention.interleave import END_OF_RETRIEVE
from mnemos.attention.models import LanguageModel
from mnemos.attention.sampling import Sampling
from mnemos.errors import InvalidSelectorError, ModelError, ModelMismatchError
from mnemos.memory.pooled_encoder import number_of
from mnemos.memory.pooled_recall import PooledRecaller
from mnemos.memory.rounds import recall_in_rounds

Scripted = Callable[[Mapping[str, str]], LanguageModel]
SAMPLING = Sampling(max_tokens=8)
SAYS_OK = {
    "<|im_start|>": END_OF_RETRIEVE,
    "<|object_ref_end|>": "o",
    END_OF_RETRIEVE: "o",
    "o": "k",
    "k": "<|im_end|>",
}


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[MemoryBank]:
    with MemoryBank.open(tmp_path / "bank") as opened:
        yield opened


def naming(number: int) -> dict[str, str]:
    """A script that names a document by its number, whose digits all differ, and then says ok."""
    written = ["<|im_start|>", "[", *str(number), "]", "<|object_ref_end|>"]
    return SAYS_OK | dict(pairwise(written)) | {"<|object_ref_end|>": END_OF_RETRIEVE}


def remember_distinct(bank: MemoryBank, text: str) -> str:
    """A memory whose number has no digit twice, which a script of one token back can write."""
    for _ in range(200):
        memory = bank.remember(text)
        digits = str(number_of(memory.id))
        if len(set(digits)) == len(digits):
            return memory.id
        bank.forget(bank.plan_forget(ids=[memory.id]))
    raise AssertionError("no memory got a number of distinct digits")


def test_a_turn_names_reads_answers_and_remembers(bank: MemoryBank, scripted_msa: Scripted) -> None:
    bank.remember("The rain in Porto is warm.")
    named = remember_distinct(bank, "My sister Clara works as a nurse in Leeds.")
    model = scripted_msa(naming(number_of(named)))
    events = list(Agent(bank, model=model, sampling=SAMPLING).stream_sync("What does Clara do?"))
    events = [event for event in events if not isinstance(event, RecallStarted)]
    assert isinstance(events[0], Recalled)
    assert isinstance(events[-2], Reply)
    assert isinstance(events[-1], Stored)
    reply = events[-2]
    assert reply.text == "ok" == "".join(e.text for e in events if isinstance(e, TokenDelta))
    assert (reply.status, reply.stop_reason) == ("complete", "eos")
    assert reply.memories[0].memory.id == named
    assert reply.memories[0].signals["named"] == 1.0
    assert len(reply.memories) == 2, "the reply depends on all that a layer read"
    assert reply.usage.paged_tokens > 0
    assert [use.memory.id for use in bank.why(reply.exchange_id)] == [m.memory.id for m in reply.memories]
    assert bank.get(reply.exchange_id).fidelity == "vivid", "it has a pooled trace of its own"


def test_forgetting_what_a_layer_read_takes_the_reply_along(bank: MemoryBank, scripted_msa: Scripted) -> None:
    fact = bank.remember("My locker code is Kestrel-4417.")
    agent = Agent(bank, model=scripted_msa(SAYS_OK), sampling=SAMPLING)
    reply = agent.run_sync("What is my locker code?")
    assert [m.memory.id for m in reply.memories] == [fact.id]
    plan = bank.plan_forget(ids=[fact.id])
    assert [memory.id for memory in plan.dependants] == [reply.exchange_id]
    bank.forget(plan)
    recaller = bank.recaller(agent.model)
    assert isinstance(recaller, PooledRecaller)
    assert fact.id not in recaller.documents("default").ids
    assert recaller.pager.keys() == []


def test_an_empty_bank_and_no_memories_wanted(bank: MemoryBank, scripted_msa: Scripted) -> None:
    model = scripted_msa(SAYS_OK)
    assert Agent(bank, model=model, sampling=SAMPLING).run_sync("Hello?").memories == ()
    assert Agent(bank, model=model, sampling=SAMPLING, k=0).run_sync("Hello?").memories == ()


def test_recent_turns_stand_in_front_of_the_question(bank: MemoryBank, scripted_msa: Scripted) -> None:
    agent = Agent(bank, model=scripted_msa(SAYS_OK), sampling=SAMPLING)
    first = agent.run_sync("I live in Porto.")
    second = agent.run_sync("Where do I live?")
    assert first.exchange_id not in [m.memory.id for m in second.memories], "it is in working memory already"
    assert second.usage.prefill_tokens > first.usage.prefill_tokens + len("I live in Porto.")
    plan = bank.plan_forget(ids=[first.exchange_id])
    assert [memory.id for memory in plan.dependants] == [second.exchange_id]


def test_search_and_like_go_by_the_routers(bank: MemoryBank, scripted_msa: Scripted) -> None:
    recaller = bank.recaller(scripted_msa(SAYS_OK))
    texts = ["0123 4567", "abc def", "~~~ ^^^ ~~~"]
    ids = [bank.remember(text).id for text in texts]
    found = recaller.search("~~~ ^^^ ~~~", namespace="default", limit=3)
    assert sorted(m.memory.id for m in found) == sorted(ids)
    assert all(set(m.signals) == {"router", "lexical"} for m in found)
    latent = recaller.search("abc", namespace="default", limit=2, router="latent")
    assert [set(m.signals) for m in latent] == [{"router"}] * 2
    match = recaller.like("abc def", namespace="default", threshold=-10.0)
    assert (match.scored, len(match.hits)) == (3, 3)
    with pytest.raises(InvalidSelectorError):
        recaller.like("", namespace="default")
    with pytest.raises(ModelError, match="pooled"):
        recaller.recall("abc", recaller.new_context(64), [5], namespace="default")


def test_traces_belong_to_one_read_mode(
    bank: MemoryBank, scripted_msa: Scripted, language_model: LanguageModel
) -> None:
    bank.remember("My sister Clara works as a nurse in Leeds.")
    model = scripted_msa(SAYS_OK)
    bank.encode_pending(model)
    fingerprint = bank.recaller(model).encoder.fingerprint
    with pytest.raises(ModelMismatchError, match="reencode"):
        bank.recaller(language_model)
    bank.reencode(language_model)
    assert bank.recaller(language_model).encoder.fingerprint != fingerprint
    bank.reencode(model)
    assert Agent(bank, model=model, sampling=SAMPLING).run_sync("Clara?").memories


def test_closing_the_stream_keeps_the_message(bank: MemoryBank, scripted_msa: Scripted) -> None:
    agent = Agent(bank, model=scripted_msa(SAYS_OK | {"k": "o"}), sampling=Sampling(max_tokens=200))
    stream = agent.stream_sync("Tell me everything.")
    for event in stream:
        if isinstance(event, TokenDelta):
            break
    stream.close()
    (kept,) = bank.list()
    assert (kept.status, kept.text, kept.reply) == ("interrupted", "Tell me everything.", "o")
    assert agent.run_sync("And now?").stop_reason == "length"
    stopped = Agent(bank, model=agent.model, sampling=Sampling(max_tokens=50, stop=("kok",))).run_sync(
        "Stop?"
    )
    assert (stopped.text, stopped.stop_reason) == ("o", "text")


def test_what_reads_memories_in_full_is_refused_by_name(bank: MemoryBank, scripted_msa: Scripted) -> None:
    model = scripted_msa({})
    with pytest.raises(ModelError, match=r"scripted-msa.*reads pooled memories"):
        evaluate_facts.run(model, ks=[1])
    recaller = bank.recaller(model)
    with pytest.raises(ModelError, match="reads pooled memories"):
        recall_in_rounds(recaller, "a", recaller.new_context(8), [1], namespace="default", rounds=2)
