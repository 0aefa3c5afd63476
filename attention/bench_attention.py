"""Attention patterns side by side: training speed and memory by length, and what each still finds.

One step is forward, backward and update of a small model whose layers all have the pattern, on one sequence
of documents and a question, with a loss on every token and, where the pattern routes, the router's.
"""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from mnemos.attention.bench_attention_data import CPU, GPU, Sizes, layers_of, needle_setting, sequence
from mnemos.attention.bench_attention_memory import peak_bytes
from mnemos.attention.bench_attention_report import Measured, report
from mnemos.attention.patterns.hybrid import HybridModel
from mnemos.attention.patterns.hybrid_config import HybridConfig
from mnemos.attention.patterns.registry import pattern_names
from mnemos.attention.power_law import fit
from mnemos.attention.training.batches import Batch
from mnemos.attention.training.distributed import Place
from mnemos.attention.training.document_passes import reads_in_groups
from mnemos.attention.training.needle import NeedleSizes, NeedleTask
from mnemos.attention.training.objective import Weights, objective
from mnemos.attention.training.recall import needle_recall
from mnemos.attention.training.trainer import Trainer
from mnemos.errors import UsageError

LENGTHS_GPU = (2048, 8192, 32768, 131072, 1048576)
LENGTHS_CPU = (512, 1024, 2048, 4096)
NEEDLE_STEPS = 240
_WEIGHTS = Weights(1.0, 0.1, 1e-4)
_LONGEST_STEP_S = 60.0  # what is foreseen to take longer is left out
_ENOUGH_S = 10.0  # of timed steps at one length
_GROUPED = 64  # documents whose activations are held at once, where a sequence is too long for all
_WHOLE_UPTO = {"cpu": 65_536, "cuda": 262_144}  # tokens
_RECALL_SAMPLES = 64

Progress = Callable[[int, int], None]


def run(
    lengths: Sequence[int] | None = None,
    patterns: Sequence[str] | None = None,
    *,
    reference: int | None = None,
    needle_steps: int = NEEDLE_STEPS,
    repetitions: int = 3,
    threads: int | None = None,
    on_progress: Progress = lambda _done, _total: None,
) -> dict[str, Any]:
    """Measures patterns, JSON-able. `a+b` is a pattern whose layers take turns.

    Args:
        lengths: in tokens; what suits the machine without any.
        patterns: all that there are without any; dense is measured with them.
        reference: the length of dense that speeds are held against.
        needle_steps: training steps before needles are looked for; 0 for none.

    Raises:
        UsageError: a pattern that there is not, or no sensible length.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    is_gpu = device.type == "cuda"
    sizes = GPU if is_gpu else CPU
    lengths = sorted(set(lengths or (LENGTHS_GPU if is_gpu else LENGTHS_CPU)))
    if lengths[0] < 2 * sizes.document:
        raise UsageError(f"lengths start at {2 * sizes.document} here, two documents; {lengths[0]} is less")
    names = list(dict.fromkeys(["dense", *(patterns or pattern_names())]))
    for name in names:
        layers_of(name, sizes)
    start, found, recalls = time.perf_counter(), {}, {}
    total = len(names) * (len(lengths) + 1)
    for number, name in enumerate(names):
        before = number * (len(lengths) + 1)
        on_progress(before, total)
        recalls[name] = _recall(name, device, needle_steps) if needle_steps else None
        on_progress(before + 1, total)
        tell = partial(_tell, on_progress, before + 1, total)
        found[name] = _measure(name, lengths, sizes, device, repetitions, tell)
    on_progress(total, total)
    return report(found, recalls, lengths, reference, sizes, device, needle_steps, repetitions) | {
        "seconds": time.perf_counter() - start
    }


def _tell(on_progress: Progress, before: int, total: int, done: int) -> None:
    on_progress(before + done, total)


def _measure(
    name: str,
    lengths: Sequence[int],
    sizes: Sizes,
    device: torch.device,
    repetitions: int,
    on_done: Callable[[int], None],
) -> Measured:
    needles = NeedleSizes(document=sizes.document)
    task = NeedleTask(needles, seed=0)
    config = HybridConfig(
        vocab=task.vocab, layers=layers_of(name, sizes), mixer=sizes.mixer(), mlp_width=2 * sizes.dim
    )
    model = HybridModel(config).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    measured = Measured()
    for number, length in enumerate(lengths):
        if measured.seconds:
            last = max(measured.seconds)
            if measured.seconds[last] * _growth(measured, length / last) > _LONGEST_STEP_S:
                measured.stopped_by = "time"
                break
        batch = sequence(task, length).to(device)
        group = _GROUPED if length > _WHOLE_UPTO[device.type] and reads_in_groups(model) else 0
        try:
            step = _stepper(model, optimiser, batch, group, sizes, device)
            step()
            measured.bytes[length] = peak_bytes(step, device)
            times = []
            for _ in range(repetitions):
                begun = time.perf_counter()
                step()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - begun)
                if sum(times) > _ENOUGH_S:
                    break
            measured.seconds[length] = statistics.median(times)
        except torch.OutOfMemoryError:
            measured.stopped_by = "memory"
            break
        finally:
            gc.collect()
        on_done(number + 1)
    return measured


def _growth(measured: Measured, times: float) -> float:
    """How much longer a step is expected to take at so many times the longest length."""
    lengths = sorted(measured.seconds)
    if len(lengths) < 2:
        return times**2
    return float(max(times, times ** fit(lengths, [measured.seconds[each] for each in lengths]).exponent))


def _stepper(
    model: HybridModel,
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    group: int,
    sizes: Sizes,
    device: torch.device,
) -> Callable[[], None]:
    place = Place(device=device)

    def step() -> None:
        found = objective(model, batch, _WEIGHTS, group=group, place=place, bf16=sizes.bf16)
        found.share.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad(set_to_none=False)  # so that gradients are no part of a step's memory

    return step


def _recall(name: str, device: torch.device, steps: int) -> float:
    """Share of needles that a tiny model of the pattern finds after so many steps."""
    sizes, settings, config = needle_setting(steps)
    task, unseen = NeedleTask(sizes, seed=0), NeedleTask(sizes, seed=0, stream=1)
    layers = layers_of(name, CPU)
    model = HybridModel(HybridConfig(vocab=task.vocab, layers=layers, mixer=config, mlp_width=128))
    Trainer(model, task, settings, place=Place(device=device)).run()
    return needle_recall(model, unseen, length=settings.length, samples=_RECALL_SAMPLES)
