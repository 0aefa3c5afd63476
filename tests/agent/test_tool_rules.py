"""Tools under the rules of an agent: turns that keep nothing, policies, time limits, other generators."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mnemos import Agent, MemoryBank, Reply, ToolContext, ToolResult, tool
from mnemos.agent.policies import Draft
from mnemos.attention.models import LanguageModel
from mnemos.attention.sampling import Sampling
from mnemos.errors import UsageError

Scripted = Callable[..., LanguageModel]
QUESTION = "What is the weather in Porto?"


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[MemoryBank]:
    with MemoryBank.open(tmp_path / "bank") as opened:
        yield opened


@tool
def weather() -> str:
    """The weather."""
    return "17 degrees and raining"


def ran(bank: MemoryBank, model: LanguageModel, of: Any, **settings: Any) -> tuple[list[ToolResult], Reply]:
    timeout_s = settings.pop("timeout_s", None)
    sampling = Sampling(max_tokens=60)
    agent = Agent(bank, model=model, tools=[of], max_steps=2, sampling=sampling, **settings)
    events = list(agent.stream_sync(QUESTION, timeout_s=timeout_s))
    (reply,) = (event for event in events if isinstance(event, Reply))
    return [event for event in events if isinstance(event, ToolResult)], reply


@pytest.mark.parametrize("rule", ["incognito", "read_only"])
def test_a_turn_that_keeps_nothing_keeps_no_result(bank: MemoryBank, scripted: Scripted, rule: str) -> None:
    (result,), reply = ran(bank, scripted(), weather, **{rule: True})
    assert (result.text, result.memory_id) == ("17 degrees and raining", None)
    assert reply.stored == ()
    assert not bank.list()


def test_a_turn_that_keeps_nothing_erases_nothing(bank: MemoryBank, scripted: Scripted) -> None:
    fact = bank.remember("Clara is a nurse.")

    @tool(timeout_s=None, retries=0)
    def purge(context: ToolContext) -> str:
        """Erase."""
        plan = context.memories.plan_forget("Clara")
        assert plan is not None
        return context.memories.forget(plan).id

    (result,), _ = ran(bank, scripted(), purge, read_only=True)
    assert result.is_error
    assert "changes nothing" in result.text
    assert bank.get(fact.id).text == "Clara is a nurse."


def test_a_result_goes_through_the_policies(bank: MemoryBank, scripted: Scripted) -> None:
    class Redact:
        def before_write(self, draft: Draft) -> Draft | None:
            return replace(draft, text=draft.text.replace("17", "##"))

    class Drop:
        def before_write(self, draft: Draft) -> Draft | None:
            return None if draft.kind == "tool" else draft

    (result,), reply = ran(bank, scripted(), weather, policies=[Redact()])
    assert result.text == "17 degrees and raining", "the model reads it as it was"
    assert result.memory_id is not None
    assert bank.get(result.memory_id).text == "weather() returned: ## degrees and raining"
    assert {"Redact"} in [set(each.changed_by) for each in reply.stored]
    (result,), _ = ran(bank, scripted(), weather, policies=[Drop()])
    assert result.memory_id is None


def test_the_turns_time_ends_a_tool(bank: MemoryBank, scripted: Scripted) -> None:
    ended = threading.Event()

    @tool
    def wait() -> str:
        """Wait."""
        ended.wait(60)
        return "late"

    model = scripted()
    ran(bank, model, weather)  # whatever is made at first use is made now
    results, reply = ran(bank, model, wait, timeout_s=3.0)
    ended.set()
    assert not results
    assert reply.status == "timeout"
    assert reply.exchange_id is not None
    assert bank.get(reply.exchange_id).status == "interrupted"


def test_another_generator_takes_no_tools(bank: MemoryBank) -> None:
    class Elsewhere:
        name = "elsewhere"

        def generate(self, messages: Sequence[Any], sampling: Sampling, stop: Any) -> Iterator[Any]:
            raise AssertionError("never asked")

    for settings in ({"tools": [weather]}, {"output_type": int}):
        with pytest.raises(UsageError, match="elsewhere"):
            Agent(bank, generator=Elsewhere(), **settings)  # type: ignore[arg-type]
