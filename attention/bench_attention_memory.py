"""How many bytes a step needs at its worst, beyond those that are there before it."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(step: Callable[[], None], device: torch.device) -> int:
    """Of tensors alone: the allocator's own count on a GPU, the profiler's of all allocations on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated() - before)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler talks on stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled:
        step()
    inner = profiled.profiler
    assert inner is not None and inner.kineto_results is not None
    held = peak = 0
    changes = [event for event in inner.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(changes, key=lambda each: each.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def available_bytes(device: torch.device) -> int:
    """Memory that a process may still take: of the GPU, or of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with Path("/proc/meminfo").open(encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass  # no Linux: all that there is
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
