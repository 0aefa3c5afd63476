"""Where the time of a turn goes: seconds spent in named methods, each moment counted once."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Meter:
    """Adds up seconds by name. What one metered method does inside another counts for the outer one alone.

    For turns that run in one thread.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu_s = 0.0  # of the thread, in all metered methods together
        self._is_inside = False

    @contextmanager
    def on(self, owner: Any, method: str, name: str) -> Iterator[None]:
        """Meters a method of an object or a class under a name, while the block runs."""
        kept = vars(owner).get(method)
        original: Callable[..., Any] = getattr(owner, method)
        self.seconds.setdefault(name, 0.0)

        def metered(*arguments: Any, **settings: Any) -> Any:
            if self._is_inside:
                return original(*arguments, **settings)
            self._is_inside = True
            started, cpu_started = time.perf_counter(), time.thread_time()
            try:
                return original(*arguments, **settings)
            finally:
                self.seconds[name] += time.perf_counter() - started
                self.cpu_s += time.thread_time() - cpu_started
                self._is_inside = False

        setattr(owner, method, metered)
        try:
            yield
        finally:
            if kept is None:
                delattr(owner, method)
            else:
                setattr(owner, method, kept)
