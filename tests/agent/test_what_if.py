"""An earlier turn asked again without a memory, on the default model."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from mnemos import Agent, MemoryBank, tool
from mnemos.agent.events import Recalled, Reply, ToolCall
from mnemos.attention.models import LanguageModel
from mnemos.attention.sampling import Sampling
from mnemos.errors import NotFoundError, UsageError

pytestmark = pytest.mark.model

FACT = "My sister Clara works as a nurse in Leeds."
QUESTION = "What does my sister Clara do for a living?"


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[MemoryBank]:
    with MemoryBank.open(tmp_path / "bank") as opened:
        yield opened


def agent_of(bank: MemoryBank, model: LanguageModel) -> Agent:
    return Agent(bank, model=model, sampling=Sampling(max_tokens=12, repetition_penalty=1.1))


def test_a_reply_is_made_again_without_a_memory_and_nothing_is_stored(
    bank: MemoryBank, language_model: LanguageModel
) -> None:
    fact = bank.remember(FACT)
    agent = agent_of(bank, language_model)
    before = agent.run_sync("Hello there.")
    asked = agent.run_sync(QUESTION)
    later = bank.remember("Clara the nurse moved from Leeds to York.")
    assert [each.memory.id for each in asked.memories] == [fact.id]
    held = [(memory.id, memory.reply) for memory in bank.list()]

    async def replayed() -> tuple[Recalled, Reply]:
        events = [event async for event in agent.what_if(asked.exchange_id or "", without=[fact.id[:8]])]
        (recalled,) = (each for each in events if isinstance(each, Recalled))
        (reply,) = (each for each in events if isinstance(each, Reply))
        return recalled, reply

    recalled, reply = asyncio.run(replayed())
    seen = {each.memory.id for each in recalled.memories}
    assert seen.isdisjoint({fact.id, asked.exchange_id, later.id}), (
        "neither it, nor itself, nor what came later"
    )
    assert "nurse" in asked.text and "nurse" not in reply.text
    assert reply.exchange_id is None and reply.stored == ()
    assert [(memory.id, memory.reply) for memory in bank.list()] == held

    same = list(agent.what_if_sync(asked.exchange_id or "", without=[]))
    assert [e.text for e in same if isinstance(e, Reply)] == [asked.text], "with all of them, it is the same"
    assert before.exchange_id is not None


def test_an_excluded_turn_is_not_recalled_by_the_next(
    bank: MemoryBank, language_model: LanguageModel
) -> None:
    fact = bank.remember(FACT)
    agent = agent_of(bank, language_model)
    reply = agent.run_sync(QUESTION, exclude=[fact.id])
    assert fact.id not in {each.memory.id for each in reply.memories}
    again = agent_of(bank, language_model).run_sync(QUESTION, exclude=[reply.exchange_id or ""])
    assert reply.exchange_id not in {each.memory.id for each in again.memories}


def test_only_exchanges_can_be_asked_again(bank: MemoryBank, language_model: LanguageModel) -> None:
    fact = bank.remember(FACT)
    agent = agent_of(bank, language_model)
    with pytest.raises(UsageError, match="is a note"):
        next(agent.what_if_sync(fact.id, without=[]))
    with pytest.raises(NotFoundError):
        next(agent.what_if_sync("0123456789abcdef0123456789abcdef", without=[]))


def test_a_turn_asked_again_calls_no_tools(bank: MemoryBank, language_model: LanguageModel) -> None:
    calls: list[str] = []

    @tool
    def look_up(word: str) -> str:
        """Look a word up."""
        calls.append(word)
        return "a word"

    agent = Agent(
        bank,
        model=language_model,
        tools=[look_up],
        tool_choice="required",
        max_steps=2,
        sampling=Sampling(max_tokens=40),
    )
    asked = agent.run_sync("Look up the word kettle.")
    assert len(calls) == 1
    for event in agent.what_if_sync(asked.exchange_id or "", without=[]):
        assert not isinstance(event, ToolCall)
    assert len(calls) == 1
