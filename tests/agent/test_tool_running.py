"""Tools that hang, raise, end their thread, or return what is no text; in threads and in event loops."""

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from mnemos import tool
from mnemos.agent.tools.running import Outcome, run_tool
from mnemos.agent.tools.tool import Tool

WHO: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")


def run(of: Tool[..., Any], stop: Callable[[], bool] = lambda: False, **arguments: Any) -> Outcome:
    return run_tool(of, arguments, loop=None, should_stop=stop)


@pytest.mark.parametrize("timeout_s", [5.0, None])
def test_a_result_comes_back(timeout_s: float | None) -> None:
    @tool(timeout_s=timeout_s)
    def add(a: int, b: int) -> int:
        return a + b

    outcome = run(add, a=2, b=3)
    assert (outcome.text, outcome.is_error) == ("5", False)


def test_a_tool_that_hangs_is_given_up() -> None:
    let_go = threading.Event()

    @tool(timeout_s=0.05)
    def hang() -> str:
        let_go.wait(30)
        return "late"

    started = time.monotonic()
    outcome = run(hang)
    assert time.monotonic() - started < 5
    assert outcome == Outcome("hang took longer than 0.05 s and was given up", True, outcome.ms)
    let_go.set()


@pytest.mark.parametrize("in_loop", [False, True])
def test_an_async_tool_that_hangs_is_cancelled(in_loop: bool) -> None:
    ended = threading.Event()

    @tool(timeout_s=0.05)
    async def hang() -> str:
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()
        return "late"

    assert _outcome(hang, in_loop).text == "hang took longer than 0.05 s and was given up"
    assert ended.wait(5)


def _outcome(of: Tool[..., Any], in_loop: bool, **arguments: Any) -> Outcome:
    if not in_loop:
        return run(of, **arguments)

    async def main() -> Outcome:
        loop = asyncio.get_running_loop()
        return await asyncio.to_thread(run_tool, of, arguments, loop=loop, should_stop=lambda: False)

    return asyncio.run(main())


@pytest.mark.parametrize("in_loop", [False, True])
def test_an_async_tool_runs_where_the_caller_is(in_loop: bool) -> None:
    @tool
    async def where() -> str:
        await asyncio.sleep(0)
        return threading.current_thread().name

    name = _outcome(where, in_loop).text
    assert (name == threading.main_thread().name) is in_loop


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (ValueError("no such city"), "ValueError: no such city"),
        (TimeoutError("the service is slow"), "TimeoutError: the service is slow"),
        (SystemExit(3), "SystemExit: 3"),
        (asyncio.CancelledError(), "CancelledError"),
    ],
)
@pytest.mark.parametrize("is_async", [False, True])
def test_what_a_tool_raises_is_told(raised: BaseException, told: str, is_async: bool) -> None:
    @tool
    def sync_one() -> str:
        raise raised

    @tool
    async def async_one() -> str:
        raise raised

    outcome = run(async_one if is_async else sync_one)
    assert outcome.is_error
    assert outcome.text is not None
    assert told in outcome.text


@pytest.mark.parametrize("is_async", [False, True])
def test_a_stopped_turn_does_not_wait_for_its_tool(is_async: bool) -> None:
    stopped, ended = threading.Event(), threading.Event()

    @tool
    def sync_one() -> str:
        stopped.set()
        ended.wait(30)
        return "late"

    @tool
    async def async_one() -> str:
        stopped.set()
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()
        return "late"

    outcome = run(async_one if is_async else sync_one, stop=stopped.is_set)
    assert (outcome.text, outcome.is_error) == (None, False)
    if is_async:
        assert ended.wait(5)
    ended.set()


def test_ten_megabytes_and_broken_text() -> None:
    @tool(result_chars=100)
    def much() -> bytes:
        return b"\xff" * (10 << 20)

    text = run(much).text
    assert text is not None
    assert len(text) < 200
    assert "10,485,760 bytes" in text


def test_a_result_that_can_not_be_written_is_an_error() -> None:
    @tool
    def circular() -> Any:
        value: list[Any] = []
        value.append(value)
        return value

    assert run(circular).is_error


def test_context_variables_are_those_of_the_caller() -> None:
    @tool
    def who() -> str:
        return WHO.get()

    @tool
    async def async_who() -> str:
        return WHO.get()

    token = WHO.set("ann")
    try:
        assert run(who).text == run(async_who).text == "ann"
    finally:
        WHO.reset(token)


def test_nothing_is_left_running() -> None:
    @tool
    def quick() -> str:
        return "x"

    for _ in range(20):
        run(quick)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        left = [t for t in threading.enumerate() if t.name.startswith("mnemos-tool-quick")]
        if not left:
            break
        time.sleep(0.01)
    assert not left
