"""Work that goes on beside the searches of a bank, in pieces, and never in anybody's way."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Condition, Event, Lock, Thread, get_native_id

from mnemos.attention.one_thread import one_thread
from mnemos.errors import MnemosError

_NICE = 15
_REST = 1.0  # times as long as a quiet piece took, until the next
_QUIET_S = 0.5  # without a search, before a quiet piece
_PATIENCE_S = 0.5  # for a search to end; where there always is one, the work goes on all the same


class QuietWorker:
    """A thread that calls `piece` until that has nothing more to do; woken, it begins again.

    `piece` says whether the next one is urgent (True), may wait until nobody searches (False), or that there
    is none (None).
    """

    def __init__(self, piece: Callable[[], bool | None]) -> None:
        self._piece = piece
        self._guard = Lock()
        self._stopped = Event()
        self._thread: Thread | None = None
        self._searched = 0.0
        self._searches = 0  # in progress
        self._ended = Condition()

    @property
    def is_stopping(self) -> bool:
        return self._stopped.is_set()

    @property
    def is_quiet(self) -> bool:
        """Whether nobody has searched for a while."""
        return not self._searches and time.monotonic() - self._searched >= _QUIET_S

    @contextmanager
    def searching(self) -> Iterator[None]:
        """Somebody searches while the block lasts: no piece begins, and one at hand gets no further than to
        where it gives way. A thread that runs Python takes the interpreter's lock for 5 ms at a time, and a
        search wants it again after each of its many small steps.
        """
        with self._ended:
            self._searches += 1
        try:
            yield
        finally:
            with self._ended:
                self._searches -= 1
                self._searched = time.monotonic()
                self._ended.notify_all()

    def give_way(self) -> None:
        """Waits while somebody searches, for a while at most. For the work, between two steps of a few
        milliseconds, where it holds nothing that a search may wait for.
        """
        with self._ended:
            self._ended.wait_for(lambda: not self._searches or self.is_stopping, _PATIENCE_S)

    def wake(self) -> None:
        with self._guard:
            if self._thread is None and not self._stopped.is_set():
                self._thread = Thread(target=self._run, name="mnemos-vectors", daemon=True)
                self._thread.start()

    def wait(self, seconds: float) -> None:
        """Until it has nothing to do."""
        if (thread := self._thread) is not None:
            thread.join(seconds)

    def close(self) -> None:
        """Ends it after the piece at hand."""
        self._stopped.set()
        with self._ended:
            self._ended.notify_all()
        if (thread := self._thread) is not None:
            thread.join()

    def _run(self) -> None:
        with suppress(OSError, AttributeError):  # of this thread alone, on Linux
            os.setpriority(os.PRIO_PROCESS, get_native_id(), _NICE)
        try:
            with one_thread():
                self._work()
        finally:
            with self._guard:
                self._thread = None

    def _work(self) -> None:
        is_urgent: bool | None = True
        while is_urgent is not None and not self._stopped.is_set():
            self.give_way()
            if self._stopped.is_set():
                return
            started = time.monotonic()
            try:
                is_urgent = self._piece()
            except MnemosError:  # busy, full or closed: the next search wakes it again
                return
            if is_urgent is False:
                self._rest(_REST * (time.monotonic() - started))

    def _rest(self, seconds: float) -> None:
        self._stopped.wait(seconds)
        while not self._stopped.is_set() and (left := self._searched + _QUIET_S - time.monotonic()) > 0:
            self._stopped.wait(left)
