"""One piece of work in a thread of its own, while the caller's thread is busy outside of Python."""

from collections.abc import Callable
from threading import Thread
from types import TracebackType
from typing import Generic, Self, TypeVar

from mnemos.attention.one_thread import one_thread

Result = TypeVar("Result")


class Ahead(Generic[Result]):
    """Runs `work` while the block lasts, which waits for its end; `result()` gives what came of it. PyTorch
    has no further threads for it.
    """

    def __init__(self, work: Callable[[], Result]) -> None:
        self._work = work
        self._found: list[Result] = []
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, name="mnemos-ahead", daemon=True)

    def _run(self) -> None:
        try:
            with one_thread():
                self._found.append(self._work())
        except BaseException as error:  # raised again by `result`
            self._error = error

    def result(self) -> Result:
        """Waits for it. Raises what the work raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._found[0]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.join()
