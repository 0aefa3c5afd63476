"""What ends a turn early: somebody's wish, or its time."""

import time
from threading import Event

from mnemos.errors import UsageError


class Stop(Event):
    """Set when somebody stops the turn; also counts as set once its time is over."""

    def __init__(self, timeout_s: float | None = None) -> None:
        """Raises `UsageError` for a time that is over before it begins."""
        super().__init__()
        if timeout_s is not None and not timeout_s > 0:
            raise UsageError(f"timeout_s must be more than 0, not {timeout_s}")
        self._end = None if timeout_s is None else time.monotonic() + timeout_s

    @property
    def timed_out(self) -> bool:
        return self._end is not None and time.monotonic() >= self._end

    def is_set(self) -> bool:
        return super().is_set() or self.timed_out

    def left_s(self) -> float | None:
        """Seconds until the turn's time is over; None where it has no end."""
        return None if self._end is None else max(self._end - time.monotonic(), 0.0)
