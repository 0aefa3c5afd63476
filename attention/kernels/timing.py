"""Timing on a device: events, a warm-up, the median, several input sets so that caches don't flatter."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

WARM_UP = 3


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `bytes_moved` are the fewest: each input read once, each output written once."""

    kernel: str
    shape: str
    median_ms: float
    bytes_moved: int
    ceiling: float  # bytes a second of a large copy in the same run, by the same bus
    rival: str = ""
    rival_ms: float | None = None
    note: str = ""

    @property
    def bandwidth(self) -> float:
        """Bytes a second."""
        return self.bytes_moved / (self.median_ms * 1e-3)

    @property
    def share(self) -> float:
        """Of the ceiling."""
        return self.bandwidth / self.ceiling

    def as_json(self) -> dict[str, object]:
        return {
            "kernel": self.kernel,
            "shape": self.shape,
            "median_ms": self.median_ms,
            "bytes_moved": self.bytes_moved,
            "bandwidth_bytes_per_s": self.bandwidth,
            "ceiling_bytes_per_s": self.ceiling,
            "share_of_ceiling": self.share,
            "rival": self.rival or None,
            "rival_median_ms": self.rival_ms,
            "note": self.note or None,
        }


def median_ms(
    calls: Sequence[Callable[[], object]], device: torch.device, repeats: int, *, in_graph: bool = True
) -> float:
    """Median time of one call; each of `calls` is the same work on other inputs, and a round makes them all.

    On CUDA a round is one captured graph, so that the host's part is left out; work that cannot be captured
    says `in_graph=False`. Elsewhere the wall clock.
    """
    for call in list(calls) * WARM_UP:
        call()

    def play() -> None:
        for call in calls:
            call()

    if device.type != "cuda":
        return statistics.median(_wall_ms(play) for _ in range(repeats)) / len(calls)
    run: Callable[[], object] = play
    if in_graph:
        torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            play()
        run = graph.replay
        run()
    return statistics.median(_event_ms(run, device) for _ in range(repeats)) / len(calls)


def _wall_ms(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return (time.perf_counter() - begun) * 1e3


def _event_ms(run: Callable[[], object], device: torch.device) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def table_lines(rows: Sequence[Row]) -> list[str]:
    """The table as people read it."""
    head = ["kernel", "shape", "ms", "MB moved", "GB/s", "of copy", "rival", "rival ms", "note"]
    cells = [
        [
            row.kernel,
            row.shape,
            f"{row.median_ms:.4f}",
            f"{row.bytes_moved / 1e6:.1f}",
            f"{row.bandwidth / 1e9:.0f}",
            f"{row.share:.0%}",
            row.rival or "-",
            "-" if row.rival_ms is None else f"{row.rival_ms:.4f}",
            row.note,
        ]
        for row in rows
    ]
    widths = [max(len(line[i]) for line in [head, *cells]) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [head, *cells]
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]
