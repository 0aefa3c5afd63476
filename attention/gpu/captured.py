"""One step over static buffers, as a CUDA graph where there is one.

A step reads its inputs from buffers that are filled before each run and leaves its outputs in others.
Captured once, it is launched as a whole; elsewhere it is run as it is written, through the same buffers.
"""

from collections.abc import Callable
from typing import Any

import torch

Step = Callable[[], None]
_WARM_UP = 2  # runs before a capture: kernels are compiled and libraries make their workspaces in them


class EagerStep:
    """A step that is run as it is written."""

    def __init__(self, step: Step) -> None:
        self._step = step

    def __call__(self) -> None:
        self._step()


class CapturedStep:
    """A step as a CUDA graph. Made while the buffers hold a valid step: it runs a few times."""

    def __init__(self, step: Step, device: torch.device, pool: Any) -> None:
        """`pool` is the memory that the graphs of one decoder share: none runs beside another.

        Raises torch.OutOfMemoryError when the device has no room for what the step makes.
        """
        with torch.cuda.device(device):
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    step()
            torch.cuda.current_stream(device).wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            # Other threads choose their tokens meanwhile: what they do on the device is no part of it.
            with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
                step()

    def __call__(self) -> None:
        self._graph.replay()


class Capturing:
    """Makes steps runnable, for one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def __call__(self, step: Step) -> Step:
        if self._device.type != "cuda":
            return EagerStep(step)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            return CapturedStep(step, self._device, self._pool)
        except torch.OutOfMemoryError:
            return EagerStep(step)  # slower, and takes no memory of its own between steps
