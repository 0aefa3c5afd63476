"""From which length on a run of pages goes faster by a copy of its own than through the gather kernel.

Measured once on a machine, with the code that pages in, and kept in the cache directory.
"""

import contextlib
import importlib.util
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mnemos.attention.cache_dir import cache_dir, write_atomically
from mnemos.attention.gpu.copies import LayerCopies, Piece
from mnemos.attention.kernels.timing import median_ms

VERSION = 1  # of the kept figure
SIZES = tuple(1 << power for power in range(12, 21))  # bytes of a run, 4 KiB to 1 MiB
DEFAULT = 28 * 1024  # where it can't be measured
_TOTAL_BYTES = 1 << 23  # a round


@dataclass(frozen=True, slots=True)
class Timed:
    """One length of run, and how long the same bytes took either way."""

    run_bytes: int
    gather_ms: float
    copies_ms: float


def gather_below(device: torch.device) -> int:
    """Bytes of a run below which the gather kernel is faster on this machine; 0 where there is no kernel."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return 0
    machine = f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return kept(machine, partial(measure, device))


def kept(machine: str, measuring: Callable[[], list[Timed]]) -> int:
    """The figure of this machine from the cache directory, or measured and kept there."""
    name = re.sub(r"[^a-z0-9]+", "-", machine.casefold()).strip("-")
    path = cache_dir() / "gpu" / f"crossover-{name}.json"
    found = _read(path, machine)
    if found is not None:
        return found
    try:
        timed = measuring()
    except RuntimeError:  # out of memory: another start measures it
        return DEFAULT
    figure = crossover_of(timed)
    document = {"version": VERSION, "machine": machine, "gather_below": figure}
    rows = [[each.run_bytes, each.gather_ms, each.copies_ms] for each in timed]
    with contextlib.suppress(OSError):  # an unwritable cache costs time at the next start, nothing else
        write_atomically(path, json.dumps(document | {"measured": rows}, indent=1).encode())
    return figure


def crossover_of(timed: Sequence[Timed]) -> int:
    """The shortest run from which on copies are as fast at every length: 0 where they always are, twice the
    longest where they never are.
    """
    figure = 2 * max(each.run_bytes for each in timed)
    for each in sorted(timed, key=lambda each: -each.run_bytes):
        if each.copies_ms > each.gather_ms:
            return figure
        figure = each.run_bytes
    return 0


def measure(
    device: torch.device, sizes: Sequence[int] = SIZES, *, total_bytes: int = _TOTAL_BYTES, repeats: int = 5
) -> list[Timed]:
    """Both ways over scattered runs of each length. Raises RuntimeError where there is no memory for it."""
    timed = []
    source = torch.randint(0, 256, (2 * total_bytes,), dtype=torch.uint8)
    if device.type == "cuda":
        source = source.pin_memory()
    target = torch.empty(1, 2 * total_bytes, dtype=torch.uint8, device=device)
    for size in sizes:
        pieces = _scattered(source.view(-1, size), total_bytes // size)
        pool = target.view(1, -1, size)
        ways = []
        for below in (size + 1, 0):
            copies = LayerCopies(pieces, pool, gather_below=below)
            copies.prepare()
            ways.append(median_ms([partial(copies.copy, 0)], device, repeats, in_graph=False))
        timed.append(Timed(size, *ways))
    return timed


def _scattered(pages: Tensor, count: int) -> list[Piece]:
    def source(layer: int) -> Tensor:
        return pages

    return [Piece(source, 2 * index, 2 * index + 1, 1) for index in range(count)]


def _read(path: Path, machine: str) -> int | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        document = json.loads(path.read_text(encoding="utf-8"))
        if (document["version"], document["machine"]) == (VERSION, machine):
            return int(document["gather_below"])
    return None
