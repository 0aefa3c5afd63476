"""Copies beside the computation: one stream of a CUDA device, or everything at once where there is none."""

from collections.abc import Callable
from typing import Protocol

import torch


class Mark(Protocol):
    """A point in the work of a stream."""

    def wait(self) -> None:
        """What the current stream is given from now on waits for this point; the host does not."""

    def synchronize(self) -> None:
        """The host waits for this point."""

    def done(self) -> bool: ...


class CopyStream(Protocol):
    """Work in order, beside the current stream of whoever asks."""

    def submit(self, work: Callable[[], None]) -> None:
        """Run `work`, whose launches go to this stream."""

    def mark(self) -> Mark:
        """Behind all that was submitted so far."""

    def fence(self) -> Mark | None:
        """Behind all that the caller's current stream was given so far; None while a graph is captured, and
        in the middle of what was submitted here.
        """

    def follow(self, mark: Mark) -> None:
        """What is submitted from now on waits for the mark."""


class Past:
    """A mark where nothing is asynchronous."""

    def wait(self) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def done(self) -> bool:
        return True


class InlineStream:
    """Work is done when `submit` returns."""

    def submit(self, work: Callable[[], None]) -> None:
        work()

    def mark(self) -> Mark:
        return Past()

    def fence(self) -> Mark | None:
        return Past()

    def follow(self, mark: Mark) -> None:
        pass


class CudaMark:
    """An event that was recorded."""

    def __init__(self, event: torch.cuda.Event, device: torch.device) -> None:
        self.event = event
        self._device = device

    def wait(self) -> None:
        torch.cuda.current_stream(self._device).wait_event(self.event)

    def synchronize(self) -> None:
        self.event.synchronize()

    def done(self) -> bool:
        return bool(self.event.query())  # type: ignore[no-untyped-call]


class CudaStream:
    """A stream of its own on a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def submit(self, work: Callable[[], None]) -> None:
        with torch.cuda.stream(self._stream):
            work()

    def mark(self) -> Mark:
        return self._record(self._stream)

    def fence(self) -> Mark | None:
        current = torch.cuda.current_stream(self._device)
        with torch.cuda.device(self._device):
            if current == self._stream or torch.cuda.is_current_stream_capturing():
                return None
        return self._record(current)

    def follow(self, mark: Mark) -> None:
        assert isinstance(mark, CudaMark)
        self._stream.wait_event(mark.event)

    def _record(self, stream: torch.cuda.Stream) -> Mark:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(stream)
        return CudaMark(event, self._device)


def stream_for(device: torch.device) -> CopyStream:
    return CudaStream(device) if device.type == "cuda" else InlineStream()
