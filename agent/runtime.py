"""How many turns run at once on one model, and who waits for a place."""

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import Event, Lock
from typing import TypeVar
from weakref import WeakKeyDictionary

from mnemos.attention.decoder import Decoder
from mnemos.attention.models import LanguageModel
from mnemos.errors import BusyError, UsageError

MAX_TURNS = 64
MAX_WAITING = 256
WAIT_S = 120.0

Result = TypeVar("Result")


class _Waiter:
    """Somebody in the queue; `tell` lets it know that a place is its own now."""

    __slots__ = ("has_place", "tell")

    def __init__(self, tell: Callable[[], None]) -> None:
        self.tell = tell
        self.has_place = False


class Runtime:
    """Places for turns, first come, first served. All agents of one model share one, unless given another.

    Up to `max_turns` turns run at once, their steps of decoding as one batch; up to `max_waiting` more wait,
    each for `wait_s` seconds at most. Whoever finds the queue full or waits for longer gets a `BusyError`
    before anything is stored.
    """

    def __init__(
        self, *, max_turns: int = MAX_TURNS, max_waiting: int = MAX_WAITING, wait_s: float = WAIT_S
    ) -> None:
        if max_turns < 1:
            raise UsageError(f"max_turns must be 1 or more, not {max_turns}")
        if max_waiting < 0 or wait_s < 0:
            raise UsageError("max_waiting and wait_s must be 0 or more")
        self.max_turns = max_turns
        self.max_waiting = max_waiting
        self.wait_s = wait_s
        self._free = max_turns
        self._queue: deque[_Waiter] = deque()
        self._guard = Lock()
        self._threads: ThreadPoolExecutor | None = None

    @classmethod
    def of(cls, model: LanguageModel) -> "Runtime":
        """The one that agents of this model share."""
        with _sharing:
            return _shared.setdefault(model.decoder, cls())

    @property
    def running(self) -> int:
        """Turns that have a place."""
        return self.max_turns - self._free

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @contextmanager
    def turn(self, within_s: float | None = None) -> Iterator[None]:
        """A place for a turn of this thread, waited for, for `within_s` at most. Raises `BusyError`."""
        wait_s = self._wait_s(within_s)
        told = Event()
        waiter = self._ask(told.set)
        if waiter is not None:
            try:
                if not told.wait(wait_s) and not self._step_out(waiter):
                    raise self._too_long(wait_s)
            except BaseException:
                if self._step_out(waiter):
                    self.leave()
                raise
        try:
            yield
        finally:
            self.leave()

    async def enter_async(self, within_s: float | None = None) -> None:
        """Waits for a place without blocking the event loop, for `within_s` at most; `leave` gives it back.

        Raises `BusyError`.
        """
        wait_s = self._wait_s(within_s)
        loop = asyncio.get_running_loop()
        told = loop.create_future()

        def settle() -> None:
            if not told.done():
                told.set_result(None)

        def tell() -> None:
            loop.call_soon_threadsafe(settle)

        waiter = self._ask(tell)
        if waiter is None:
            return
        try:
            async with asyncio.timeout(wait_s):
                await told
        except TimeoutError:
            if not self._step_out(waiter):
                raise self._too_long(wait_s) from None
        except BaseException:
            if self._step_out(waiter):
                self.leave()
            raise

    def leave(self) -> None:
        """Gives a place to who has waited longest."""
        while True:
            with self._guard:
                if not self._queue:
                    self._free += 1
                    return
                waiter = self._queue.popleft()
                waiter.has_place = True
            try:
                waiter.tell()
                return
            except RuntimeError:  # its event loop is closed: nobody waits there any more
                waiter.has_place = False

    async def in_thread(self, work: Callable[..., Result], *arguments: object) -> Result:
        """Runs a step of a turn in a thread: there are enough for all that have a place."""
        with self._guard:
            if self._threads is None:
                # A cancelled turn is closed in a second one while its last step still runs.
                self._threads = ThreadPoolExecutor(2 * self.max_turns, thread_name_prefix="mnemos-turn")
        call = partial(contextvars.copy_context().run, work, *arguments)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def _ask(self, tell: Callable[[], None]) -> _Waiter | None:
        """None with a place, otherwise a waiter in the queue."""
        with self._guard:
            if self._free:
                self._free -= 1
                return None
            if len(self._queue) >= self.max_waiting:
                raise BusyError(
                    f"{self.max_turns} turns run on this model and {len(self._queue)} wait, which is all "
                    "that may; nothing was stored. Try again later, or give the agents a "
                    "Runtime(max_waiting=...) with more room"
                )
            waiter = _Waiter(tell)
            self._queue.append(waiter)
            return waiter

    def _step_out(self, waiter: _Waiter) -> bool:
        """Out of the queue; whether the waiter has got a place meanwhile, which is then to be given back."""
        with self._guard:
            if waiter in self._queue:
                self._queue.remove(waiter)
            return waiter.has_place

    def _wait_s(self, within_s: float | None) -> float:
        return self.wait_s if within_s is None else max(0.0, min(within_s, self.wait_s))

    def _too_long(self, waited_s: float) -> BusyError:
        return BusyError(
            f"no place for this turn within {waited_s:.3g} s: {self.max_turns} others run on this model; "
            "nothing was stored. Try again later, or give the agents a Runtime(wait_s=...) that waits longer"
        )


_shared: WeakKeyDictionary[Decoder, Runtime] = WeakKeyDictionary()
_sharing = Lock()
