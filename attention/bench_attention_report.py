"""What was measured of attention patterns, as figures by pattern."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from mnemos.attention.bench_attention_data import Sizes, layers_of, needle_setting
from mnemos.attention.bench_attention_memory import available_bytes
from mnemos.attention.patterns.registry import pattern
from mnemos.attention.power_law import PowerLaw, fit
from mnemos.errors import UsageError

REFERENCE_GPU, REFERENCE_CPU = 32768, 1024
"""The length of dense attention that all others are held against; a CPU has 1/32 of the lengths."""


@dataclass(slots=True)
class Measured:
    """One pattern's figures by length."""

    seconds: dict[int, float] = field(default_factory=dict)  # of a step
    bytes: dict[int, int] = field(default_factory=dict)
    stopped_by: str | None = None  # why longer ones were not measured: "time" or "memory"


def report(
    found: dict[str, Measured],
    recalls: dict[str, float | None],
    lengths: Sequence[int],
    reference: int | None,
    sizes: Sizes,
    device: torch.device,
    needle_steps: int,
    repetitions: int,
) -> dict[str, Any]:
    dense = found["dense"].seconds
    if not dense:
        raise UsageError(f"dense attention does not fit at {lengths[0]} tokens; give a shorter length too")
    usual = REFERENCE_GPU if device.type == "cuda" else REFERENCE_CPU
    at = reference or (usual if usual in dense else max(dense))
    if at not in dense:
        raise UsageError(f"dense was not measured at {at} tokens; choose from {', '.join(map(str, dense))}")
    of_dense, budget = at / dense[at], available_bytes(device)
    _, needles, _ = needle_setting(max(needle_steps, 1))
    return {
        "patterns": {
            name: _row(name, measured, recalls[name], lengths, of_dense, budget, sizes)
            for name, measured in found.items()
        },
        "reference_length": at,
        "reference_tokens_per_s": of_dense,
        "lengths": list(lengths),
        "recall_length": needles.length,
        "recall_steps": needle_steps,
        "memory_budget_bytes": budget,
        "repetitions": repetitions,
        "model": asdict(sizes),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "torch": str(torch.__version__),
    }


def _row(
    name: str,
    measured: Measured,
    recall: float | None,
    lengths: Sequence[int],
    of_dense: float,
    budget: int,
    sizes: Sizes,
) -> dict[str, Any]:
    timed, kept = sorted(measured.seconds), sorted(measured.bytes)
    time_law = _law(timed, [measured.seconds[each] for each in timed])
    memory_law = _law(kept, [measured.bytes[each] for each in kept])
    speed = {length: length / seconds for length, seconds in measured.seconds.items()}
    of = [pattern(part) for part in layers_of(name, sizes)]
    costliest = max(of, key=lambda each: (each.complexity.time_exponent, each.complexity.memory_exponent))
    longest: int | None = max(timed, default=0)
    is_measured = measured.stopped_by == "memory"
    if not is_measured:
        longest = int(memory_law.solve(budget)) if memory_law else None
    return {
        "tokens_per_s": {str(length): speed.get(length) for length in lengths},
        "ratio_to_dense": {
            str(length): speed[length] / of_dense if length in speed else None for length in lengths
        },
        "peak_bytes": {str(length): measured.bytes.get(length) for length in lengths},
        "time_exponent": time_law and time_law.exponent,
        "time_exponent_error": time_law and time_law.error,
        "memory_exponent": memory_law and memory_law.exponent,
        "memory_exponent_error": memory_law and memory_law.error,
        "longest_length": longest,
        "longest_is": "measured" if is_measured else "estimated",
        "stopped_by": measured.stopped_by,
        "recall": recall,
        "claimed_time": costliest.complexity.time,
        "claimed_memory": costliest.complexity.memory,
        "claimed_time_exponent": costliest.complexity.time_exponent,
        "claimed_memory_exponent": costliest.complexity.memory_exponent,
        "paper": costliest.paper,
    }


def _law(xs: Sequence[int], ys: Sequence[float]) -> PowerLaw | None:
    return fit(xs, ys) if len(xs) > 1 else None
