"""Turns whose reply a server writes, on a small random model and a real HTTP server."""

import asyncio
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from tests.agent import serving as server
from tests.memory.conftest import tiny_model

from mnemos import Agent, MemoryBank
from mnemos.agent.events import Recalled, Reply, Stored, TokenDelta
from mnemos.agent.openai_generator import OpenAIGenerator
from mnemos.attention.models import LanguageModel
from mnemos.errors import (
    GeneratorError,
    GeneratorRefusedError,
    GeneratorResponseError,
    GeneratorTimeoutError,
    GeneratorUnreachableError,
    ModelError,
)

__all__ = ["tiny_model"]

FACT = "My sister Clara works as a nurse in Leeds."
QUESTION = "What does my sister Clara do for a living?"


@pytest.fixture
def language_model(tiny_model: LanguageModel) -> LanguageModel:
    """What is tested here is the same for every model."""
    return tiny_model


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[MemoryBank]:
    with MemoryBank.open(tmp_path / "bank") as opened:
        yield opened


def agent_of(bank: MemoryBank, model: LanguageModel, url: str, **settings: Any) -> Agent:
    return Agent(
        bank, model=model, generator=OpenAIGenerator(url, "small", **settings), instructions="Be kind."
    )


def test_the_memories_words_go_out_and_provenance_comes_back(
    bank: MemoryBank, language_model: LanguageModel
) -> None:
    fact = bank.remember(FACT)
    bank.remember("The heron nests by the weir.")
    usage = {"prompt_tokens": 40, "completion_tokens": 5}
    with server.serving(server.says("She works ", "as a nurse.", usage=usage)) as running:
        agent = agent_of(bank, language_model, running.url)
        events = list(agent.stream_sync(QUESTION))
        again = agent.run_sync("Thank you.")
    recalled = next(event for event in events if isinstance(event, Recalled))
    assert (recalled.mode, recalled.paged_tokens, recalled.paged_bytes) == ("text", 0, 0)
    assert [each.memory.id for each in recalled.memories] == [fact.id]
    reply = next(event for event in events if isinstance(event, Reply))
    assert (reply.text, reply.mode, reply.status) == ("She works as a nurse.", "text", "complete")
    assert reply.generator == f"small at {running.url.split('/')[2]}"
    assert reply.memories[0].cited and (reply.usage.prefill_tokens, reply.usage.decoded_tokens) == (40, 5)
    assert isinstance(events[-1], Stored)
    system, user = running.asked[0]["messages"]
    assert system["role"] == "system" and "Be kind." in system["content"] and FACT in system["content"]
    assert "heron" not in system["content"]
    assert user == {"role": "user", "content": QUESTION}
    assert [each["content"] for each in running.asked[1]["messages"][1:]] == [
        QUESTION,
        reply.text,
        "Thank you.",
    ]
    (use,) = bank.why(str(reply.exchange_id))
    assert use.memory.id == fact.id and use.cited
    plan = bank.plan_forget(ids=[fact.id])
    assert {each.id for each in plan.dependants} == {reply.exchange_id, again.exchange_id}
    bank.forget(plan)
    assert "nurse" not in " ".join(f"{each.text} {each.reply}" for each in bank.list())


def _broken(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    server.start_events(handler)
    server.send_event(handler, server.piece("She wor"))
    server.send_event(handler, "{")


def _hanging(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    server.start_events(handler)
    server.send_event(handler, server.piece("She wor"))
    while True:  # until the client has left
        time.sleep(0.1)
        handler.wfile.write(b": \n\n")


def _refusing(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    server.send(handler, b"{}", "application/json", 503)


@pytest.mark.parametrize(
    ("answer", "error", "kept"),
    [
        (_broken, GeneratorResponseError, "She wor"),
        (_hanging, GeneratorTimeoutError, "She wor"),
        (_refusing, GeneratorRefusedError, None),
    ],
)
def test_a_server_that_fails_costs_no_message(
    bank: MemoryBank,
    language_model: LanguageModel,
    answer: Any,
    error: type[GeneratorError],
    kept: str | None,
) -> None:
    with server.serving(answer) as running:
        agent = agent_of(bank, language_model, running.url, silence_s=0.4)
        with pytest.raises(error) as caught:
            agent.run_sync(QUESTION)
        assert "Clara" not in str(caught.value)
        (exchange,) = bank.list()
        assert (exchange.text, exchange.reply, exchange.status) == (QUESTION, kept, "interrupted")
        running.answer = server.says("Better now.")
        assert agent.run_sync(QUESTION).text == "Better now."


def test_nobody_there_costs_no_message(bank: MemoryBank, language_model: LanguageModel) -> None:
    with pytest.raises(GeneratorUnreachableError):
        agent_of(bank, language_model, "http://127.0.0.1:9/v1").run_sync(QUESTION)
    assert [(each.text, each.status) for each in bank.list()] == [(QUESTION, "interrupted")]


def test_a_cancelled_turn_keeps_what_came(bank: MemoryBank, language_model: LanguageModel) -> None:
    async def cancel_soon(agent: Agent) -> float:
        begun = asyncio.Event()

        async def read() -> None:
            async for event in agent.stream(QUESTION):
                if isinstance(event, TokenDelta):
                    begun.set()

        task = asyncio.create_task(read())
        await begun.wait()
        started = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return time.monotonic() - started

    with server.serving(_hanging) as running:
        agent = agent_of(bank, language_model, running.url)
        assert asyncio.run(cancel_soon(agent)) < 5.0
        (kept,) = bank.list()
        assert (kept.reply, kept.status) == ("She wor", "interrupted")


def test_a_timeout_ends_a_turn_of_either_kind(bank: MemoryBank, language_model: LanguageModel) -> None:
    with server.serving(_hanging) as running:
        agent = agent_of(bank, language_model, running.url)
        bank.search("warm up", model=language_model)
        reply = agent.run_sync(QUESTION, timeout_s=3.0)
    assert (reply.status, reply.stop_reason) == ("timeout", "timeout")
    kept = bank.get(str(reply.exchange_id))
    assert (kept.status, kept.reply or "") == ("interrupted", reply.text)
    assert "She wor".startswith(reply.text), "a slow machine may come to no word in that time"
    own = Agent(bank, model=language_model)
    events = list(own.stream_sync("Tell me a very long story about a lighthouse.", timeout_s=0.01))
    assert not any(isinstance(event, Stored) for event in events), "no trace was made in no time"
    reply = events[-1]
    assert isinstance(reply, Reply) and (reply.status, reply.text) == ("timeout", "")
    assert bank.get(str(reply.exchange_id)).status == "interrupted"
    assert own.run_sync("Hello.", timeout_s=500).status == "complete"


def test_incognito_leaves_nothing_here_either(bank: MemoryBank, language_model: LanguageModel) -> None:
    with server.serving(server.says("Yes.")) as running:
        reply = agent_of(bank, language_model, running.url).run_sync(QUESTION, incognito=True)
    assert (reply.text, reply.stored, bank.list(), bank.sessions()) == ("Yes.", (), [], [])


def test_a_model_that_can_not_route_for_another_is_refused(bank: MemoryBank, scripted_msa: Any) -> None:
    agent = Agent(bank, model=scripted_msa({}), generator=OpenAIGenerator("http://127.0.0.1:9/v1", "x"))
    with pytest.raises(ModelError, match="can't recall for another generator"):
        agent.run_sync("Hello.")
    assert not bank.list()
