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
    operations: int = 0  # of the matrix units, a multiplication and an addition as two; 0 where few
    product_ceiling: float | None = None  # operations a second of a large product in the same run
    other_rivals: tuple[tuple[str, float], ...] = ()  # with their milliseconds

    @property
    def bandwidth(self) -> float:
        """Bytes a second."""
        return self.bytes_moved / (self.median_ms * 1e-3)

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.operations / (self.median_ms * 1e-3)

    @property
    def bound_by(self) -> str:
        """The ceiling that these bytes and operations come to first."""
        if self.product_ceiling is None:
            return "copy"
        is_more = self.operations / self.product_ceiling > self.bytes_moved / self.ceiling
        return "product" if is_more else "copy"

    @property
    def share(self) -> float:
        """Of the ceiling that it is bound by."""
        if self.bound_by == "product" and self.product_ceiling is not None:
            return self.rate / self.product_ceiling
        return self.bandwidth / self.ceiling

    def as_json(self) -> dict[str, object]:
        return {
            "kernel": self.kernel,
            "shape": self.shape,
            "median_ms": self.median_ms,
            "bytes_moved": self.bytes_moved,
            "bandwidth_bytes_per_s": self.bandwidth,
            "ceiling_bytes_per_s": self.ceiling,
            "operations": self.operations or None,
            "operations_per_s": self.rate if self.operations else None,
            "ceiling_operations_per_s": self.product_ceiling,
            "bound_by": self.bound_by,
            "share_of_ceiling": self.share,
            "rival": self.rival or None,
            "rival_median_ms": self.rival_ms,
            "other_rivals_median_ms": dict(self.other_rivals),
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
    """The table as people read it: an operation is a flop here."""
    head = [
        "kernel", "shape", "ms", "MB moved", "GB/s", "TFLOP/s", "share", "of", "rival", "rival ms", "note"
    ]  # fmt: skip
    cells = [
        [
            row.kernel,
            row.shape,
            f"{row.median_ms:.4f}",
            f"{row.bytes_moved / 1e6:.1f}",
            f"{row.bandwidth / 1e9:.0f}",
            f"{row.rate / 1e12:.1f}" if row.operations else "-",
            f"{row.share:.0%}",
            row.bound_by,
            row.rival or "-",
            "-" if row.rival_ms is None else f"{row.rival_ms:.4f}",
            "; ".join([*(f"{name} {ms:.4f} ms" for name, ms in row.other_rivals), *filter(None, [row.note])]),
        ]
        for row in rows
    ]
    widths = [max(len(line[i]) for line in [head, *cells]) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [head, *cells]
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]
