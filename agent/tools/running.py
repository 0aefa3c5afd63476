"""Running one call of a tool: for so long and no longer, and not beyond the turn's end.

A sync function runs in a daemon thread, since nothing else could let go of one that hangs; what it still
returns later is dropped. An async one runs in the caller's event loop where there is one, and is cancelled.
"""

import asyncio
import contextvars
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from threading import Thread
from typing import Any

from mnemos.agent.tools.results import error_text, text_of
from mnemos.agent.tools.tool import Tool

_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a call; None for the text when the turn was stopped meanwhile."""

    text: str | None
    is_error: bool
    ms: float


class _StoppedError(Exception):
    """The turn was stopped while a tool ran."""


class _GivenUpError(Exception):
    """A tool took longer than it may."""


def run_tool(
    tool: Tool[..., Any],
    arguments: Mapping[str, Any],
    *,
    loop: asyncio.AbstractEventLoop | None,
    should_stop: Callable[[], bool],
) -> Outcome:
    """Calls the tool and waits for it, at most its timeout and until `should_stop()`.

    `loop` is the event loop that async tools run in, from another thread than this one; without it they get
    one of their own.
    """
    started = time.perf_counter()
    text: str | None = None
    is_error = True
    try:
        if tool.timeout_s is None and not tool.is_async:
            text = text_of(tool.function(**arguments), tool.result_chars)
        else:
            text = _awaited(_begin(tool, arguments, loop), tool.timeout_s, should_stop)
        is_error = False
    except _StoppedError:
        is_error = False
    except _GivenUpError:
        text = f"{tool.name} took longer than {tool.timeout_s:g} s and was given up"
    except Exception as error:  # whatever a tool raises is for the model to read
        text = error_text(error)
    return Outcome(text, is_error, (time.perf_counter() - started) * 1e3)


def _awaited(future: "Future[str]", timeout_s: float | None, should_stop: Callable[[], bool]) -> str:
    """What the future comes to; it is cancelled when time is up or the turn stopped."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    try:
        while True:
            left = _POLL_S if deadline is None else min(_POLL_S, max(deadline - time.monotonic(), 0.0))
            if wait([future], left).done:
                return future.result()
            if should_stop():
                raise _StoppedError
            if deadline is not None and time.monotonic() >= deadline:
                raise _GivenUpError
    finally:
        future.cancel()


def _begin(
    tool: Tool[..., Any], arguments: Mapping[str, Any], loop: asyncio.AbstractEventLoop | None
) -> "Future[str]":
    if not tool.is_async:
        future: Future[str] = Future()
        _start(future, lambda: text_of(tool.function(**arguments), tool.result_chars), tool.name)
        return future

    async def called() -> str:
        return text_of(await tool.function(**arguments), tool.result_chars)

    if loop is not None and loop.is_running():
        return asyncio.run_coroutine_threadsafe(called(), loop)
    task = _TaskFuture()
    _start(task, lambda: asyncio.run(task.run(called())), tool.name)
    return task


class _TaskFuture(Future[str]):
    """The result of a task in a loop of its own; cancelling it cancels the task."""

    def __init__(self) -> None:
        super().__init__()
        self._task: asyncio.Task[str] | None = None
        self._is_unwanted = False

    async def run(self, work: Coroutine[Any, Any, str]) -> str:
        self._task = asyncio.ensure_future(work)
        if self._is_unwanted:
            self._task.cancel()
        return await self._task

    def cancel(self) -> bool:
        self._is_unwanted = True
        if self._task is not None:
            with suppress(RuntimeError):  # its loop has closed already
                self._task.get_loop().call_soon_threadsafe(self._task.cancel)
        return super().cancel()


def _start(future: "Future[str]", work: Callable[[], str], name: str) -> None:
    """Runs `work` in a daemon thread, with the caller's context variables, and hands its outcome on."""
    context = contextvars.copy_context()

    def run() -> None:
        outcome: str | Exception
        try:
            outcome = context.run(work)
        except Exception as error:
            outcome = error
        except BaseException as error:  # a tool that calls sys.exit() ends itself only
            outcome = RuntimeError(error_text(error))
        if future.set_running_or_notify_cancel():  # unless nobody waits for it any more
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    Thread(target=run, name=f"mnemos-tool-{name}", daemon=True).start()
