"""One writer at a time, across processes and threads."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from mnemos.errors import BankLockedError

if TYPE_CHECKING:
    from filelock import FileLock

DEFAULT_WAIT_S = 5.0


class WriterLock:
    """An operating-system lock that a dead process lets go of by itself; re-entrant within a thread.

    The holder's process id lies beside the lock, so that who waits can say for whom.
    """

    def __init__(self, bank: Path, wait_s: float = DEFAULT_WAIT_S) -> None:
        self._bank = bank
        self._holder = bank / "lock.pid"
        self._lock: FileLock | None = None
        self._threads = threading.RLock()
        self._depth = 0
        self.wait_s = wait_s

    @contextmanager
    def without_waiting(self) -> Iterator[None]:
        """Holds the lock if it is free at this moment; BankLockedError otherwise."""
        wait_s, self.wait_s = self.wait_s, 0.0
        try:
            self.__enter__()
        finally:
            self.wait_s = wait_s
        try:
            yield
        finally:
            self.__exit__(None, None, None)

    def __enter__(self) -> "WriterLock":
        if not self._threads.acquire(timeout=max(self.wait_s, 0.001) * 12):
            raise BankLockedError(
                f"Another thread of this process has been writing to {self._bank} for long. Try again."
            )
        try:
            if self._depth == 0:
                self._acquire()
            self._depth += 1
        except BaseException:
            self._threads.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0 and self._lock is not None:
            self._lock.release()
        self._threads.release()

    def _acquire(self) -> None:
        from filelock import FileLock, Timeout  # loads asyncio, which a mere reader can do without

        if self._lock is None:
            self._lock = FileLock(self._bank / "lock", thread_local=False, mode=0o600)
        try:
            self._lock.acquire(timeout=self.wait_s, poll_interval=0.01)
        except Timeout:
            raise BankLockedError(
                f"{self._bank} is being written by another process ({self._holder_name()}). Waited "
                f"{self.wait_s:g} s; try again when it is done."
            ) from None
        try:
            self._holder.write_text(str(os.getpid()), encoding="ascii")
        except BaseException:
            self._lock.release()
            raise

    def _holder_name(self) -> str:
        try:
            return f"process {int(self._holder.read_text(encoding='ascii'))}"
        except (OSError, ValueError):
            return "process unknown"
