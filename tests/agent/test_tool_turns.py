"""Turns with tools, over a real bank, on models that call one whenever they may."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mnemos import Agent, MemoryBank, Reply, TokenDelta, ToolCall, ToolContext, ToolResult, tool
from mnemos.agent.events import Event, Recalled, RecallStarted, Stored
from mnemos.attention.models import LanguageModel
from mnemos.attention.sampling import Sampling
from mnemos.errors import UsageError

Scripted = Callable[..., LanguageModel]
SAMPLING = Sampling(max_tokens=120)
QUESTION = "What is the weather in Porto?"


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[MemoryBank]:
    with MemoryBank.open(tmp_path / "bank") as opened:
        yield opened


@tool
def weather() -> str:
    """The weather."""
    return "17 degrees and raining"


def agent_of(bank: MemoryBank, model: LanguageModel, *tools: Any, **settings: Any) -> Agent:
    return Agent(bank, model=model, tools=tools, **{"sampling": SAMPLING, "max_steps": 2} | settings)


def told(events: list[Event]) -> list[ToolResult]:
    return [event for event in events if isinstance(event, ToolResult)]


@pytest.mark.parametrize("family", ["plain", "hermes", "llama3", "mistral"])
def test_a_turn_calls_and_goes_on_in_each_family(bank: MemoryBank, scripted: Scripted, family: str) -> None:
    events = list(agent_of(bank, scripted(family), weather).stream_sync(QUESTION))
    kinds = [type(event) for event in events if not isinstance(event, TokenDelta)]
    many = kinds.count(ToolCall)
    assert kinds == [RecallStarted, Recalled, *[ToolCall, ToolResult] * many, Reply, Stored]
    assert many >= 1
    call, result = (next(e for e in events if isinstance(e, kind)) for kind in (ToolCall, ToolResult))
    assert isinstance(call, ToolCall)
    assert isinstance(result, ToolResult)
    assert (call.name, dict(call.arguments), call.step) == ("weather", {}, 1)
    assert (result.text, result.is_error, result.call_id) == ("17 degrees and raining", False, call.call_id)
    (reply,) = (event for event in events if isinstance(event, Reply))
    assert reply.text == "".join(event.text for event in events if isinstance(event, TokenDelta))
    assert "tool_call" not in reply.text
    assert "TOOL_CALLS" not in reply.text


def test_the_result_is_a_memory_that_the_reply_depends_on(bank: MemoryBank, scripted: Scripted) -> None:
    agent = agent_of(bank, scripted(), weather)
    events = list(agent.stream_sync(QUESTION))
    (result,), reply = told(events), next(e for e in events if isinstance(e, Reply))
    assert result.memory_id is not None
    kept = bank.get(result.memory_id)
    assert (kept.kind, kept.title, kept.source) == ("tool", "weather", "tool:weather")
    assert kept.text == "weather() returned: 17 degrees and raining"
    assert kept.session_id == agent.session_id
    assert [use.memory.id for use in bank.why(reply.exchange_id)] == [kept.id]
    assert [each.id for each in bank.used_in(kept.id)] == [reply.exchange_id]
    assert bank.encode_pending(agent.model) == 0, "it can be recalled already"


def test_forgetting_the_result_takes_the_reply(bank: MemoryBank, scripted: Scripted) -> None:
    model = scripted("hermes", {"\n": "<tool_call>", "<|im_end|>": "o", "o": "k", "k": "<|im_end|>"})
    events = list(agent_of(bank, model, weather).stream_sync(QUESTION))
    (result,) = told(events)
    assert result.memory_id is not None
    plan = bank.plan_forget(ids=[result.memory_id])
    replied = bool(next(e for e in events if isinstance(e, Reply)).text)
    assert len(plan.dependants) == replied
    bank.forget(plan)
    assert [(m.kind, m.text, m.reply) for m in bank.list()] == [("exchange", QUESTION, None)]
    assert bank.verify(deep=True).ok


def test_forgetting_what_a_call_was_made_from_takes_the_result(bank: MemoryBank, scripted: Scripted) -> None:
    agent = agent_of(bank, scripted(), weather)
    first = agent.run_sync("I live in Porto.")
    events = list(agent.stream_sync(QUESTION))
    (result,) = told(events)
    plan = bank.plan_forget(ids=[first.exchange_id])
    assert result.memory_id in [memory.id for memory in plan.dependants]
    receipt = bank.forget(plan)
    assert result.memory_id in receipt.forgotten
    assert [memory.kind for memory in bank.list()].count("tool") == 0
    assert bank.verify(deep=True).ok


def test_the_next_step_reads_only_what_is_new(bank: MemoryBank, scripted: Scripted) -> None:
    read: list[int] = []
    model = scripted()
    forward = model.decoder.forward

    def counted(tokens: Any, *rest: Any, **more: Any) -> Any:
        read.append(len(tokens))
        return forward(tokens, *rest, **more)

    model.decoder.forward = counted  # type: ignore[method-assign]
    try:
        reply = agent_of(bank, model, weather).run_sync(QUESTION)
    finally:
        model.decoder.forward = forward  # type: ignore[method-assign]
    prompt, *results = [count for count in read if count > 1]
    assert len(results) == 1
    assert results[0] < prompt / 2
    assert reply.usage.prefill_tokens == prompt + results[0]


def test_the_model_is_told_of_an_error_until_its_budget_ends(bank: MemoryBank, scripted: Scripted) -> None:
    @tool(retries=1)
    def broken() -> str:
        raise ValueError("no such city")

    events = list(agent_of(bank, scripted(), broken, max_steps=6).stream_sync(QUESTION))
    texts = [result.text for result in told(events)]
    assert len(texts) >= 2
    assert "ValueError: no such city" in texts[0]
    assert "You may call it again" in texts[0]
    assert "can't be called any more" in texts[-1]
    assert next(e for e in events if isinstance(e, Reply)).status == "complete"
    assert [memory.kind for memory in bank.list()] == ["exchange"], "an error is no memory"


def test_a_turn_ends_after_max_steps(bank: MemoryBank, scripted: Scripted) -> None:
    model = scripted("hermes", {"</tool_call>": "<|im_end|>"})
    events = list(agent_of(bank, model, weather, max_steps=4).stream_sync(QUESTION))
    steps = [event.step for event in events if isinstance(event, ToolCall)]
    assert max(steps) == 3
    assert isinstance(events[-2], Reply)


def test_a_tool_that_hangs_does_not_hold_the_turn(bank: MemoryBank, scripted: Scripted) -> None:
    let_go = threading.Event()

    @tool(timeout_s=0.05, retries=0)
    def hang() -> str:
        let_go.wait(30)
        return "late"

    events = list(agent_of(bank, scripted(), hang).stream_sync(QUESTION))
    let_go.set()
    assert "took longer than 0.05 s" in told(events)[0].text
    assert isinstance(events[-1], Stored)


def test_ten_megabytes_fit_the_window_of_a_small_model(bank: MemoryBank, scripted: Scripted) -> None:
    @tool(result_chars=12_000)
    def much() -> str:
        return "x" * (10 << 20)

    events = list(agent_of(bank, scripted(window=3000), much).stream_sync(QUESTION))
    (result,) = told(events)
    assert "[cut: the first 12,000 of 10,485,760 characters]" in result.text
    reply = next(e for e in events if isinstance(e, Reply))
    assert reply.usage.prefill_tokens < 3000
    assert reply.stop_reason == "eos"


@pytest.mark.parametrize("is_async", [False, True])
def test_cancelling_in_the_middle_of_a_tool_leaves_nothing_half_done(
    bank: MemoryBank, scripted: Scripted, is_async: bool
) -> None:
    begun, ended = threading.Event(), threading.Event()

    @tool(name="wait")
    def wait_sync() -> str:
        begun.set()
        ended.wait(30)
        return "late"

    @tool(name="wait")
    async def wait_async() -> str:
        begun.set()
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()
        return "late"

    agent = agent_of(bank, scripted(), wait_async if is_async else wait_sync)

    async def cancel_in_the_tool() -> None:
        async def read() -> None:
            async for _ in agent.stream(QUESTION):
                pass

        task = asyncio.create_task(read())
        while not begun.is_set():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel_in_the_tool())
    assert not is_async or ended.is_set(), "an async tool is cancelled"
    ended.set()
    (kept,) = bank.list()
    assert (kept.kind, kept.status, kept.text) == ("exchange", "interrupted", QUESTION)
    assert bank.verify(deep=True).ok
    assert agent_of(bank, scripted(), weather).run_sync("Hello?").status == "complete"


def test_async_tools_run_in_the_callers_loop(bank: MemoryBank, scripted: Scripted) -> None:
    async def main() -> list[ToolResult]:
        here = asyncio.get_running_loop()

        @tool
        async def is_here() -> bool:
            """Where."""
            return asyncio.get_running_loop() is here

        return told([event async for event in agent_of(bank, scripted(), is_here).stream(QUESTION)])

    assert asyncio.run(main())[0].text == "true"


def test_a_context_is_filled_in_and_not_seen(bank: MemoryBank, scripted: Scripted) -> None:
    seen: list[ToolContext] = []

    def note(context: ToolContext) -> None:
        """Note."""
        seen.append(context)

    agent = agent_of(bank, scripted(), note, namespace="alice")
    agent.run_sync(QUESTION)
    assert (seen[0].namespace, seen[0].session_id) == ("alice", agent.session_id)


def test_words_before_a_call_are_part_of_the_reply(bank: MemoryBank, scripted: Scripted) -> None:
    model = scripted("mistral", {"[/INST]": "H", "H": "i", "i": "[TOOL_CALLS]", "[/TOOL_RESULTS]": "H"})
    events = list(agent_of(bank, model, weather).stream_sync(QUESTION))
    assert told(events)
    reply = next(e for e in events if isinstance(e, Reply))
    assert reply.text.startswith("Hi")
    assert bank.get(reply.exchange_id).reply == reply.text


def test_settings_that_make_no_sense_are_refused(bank: MemoryBank, scripted: Scripted) -> None:
    for settings in ({"max_steps": 1}, {"tool_choice": "always"}, {"output_retries": -1}):
        with pytest.raises(UsageError):
            agent_of(bank, scripted(), weather, **settings)
    with pytest.raises(UsageError, match="no tools"):
        Agent(bank, tool_choice="required")
    with pytest.raises(UsageError, match="two tools"):
        agent_of(bank, scripted(), weather, weather)


def test_a_model_of_pooled_memories_refuses_tools(
    bank: MemoryBank, scripted_msa: Callable[..., LanguageModel]
) -> None:
    for settings in ({"tools": [weather]}, {"output_type": int}):
        agent = Agent(bank, model=scripted_msa({}), **settings)
        with pytest.raises(UsageError, match="pooled memories"):
            agent.run_sync(QUESTION)
    assert not bank.list()
