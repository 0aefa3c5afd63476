"""What the agent costs beside the model, and how many conversations share one: `mnemos bench agent`.

Every ratio is of figures taken in one run. Turns go over real banks in temporary directories.
"""

import asyncio
import gc
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mnemos.agent.agent import Agent
from mnemos.agent.bench_meter import Meter
from mnemos.agent.events import Reply
from mnemos.agent.runtime import Runtime
from mnemos.attention.generate import Generation
from mnemos.attention.models import LanguageModel, load
from mnemos.attention.sampling import Sampling
from mnemos.attention.shared_decoder import SharedDecoder
from mnemos.errors import UsageError
from mnemos.memory.bank import MemoryBank
from mnemos.store.keys import KeyFile

PARTS = ("overhead", "concurrency", "memory")
CONVERSATIONS = 32
TOKENS = 48
TURNS = 1000
_OVERHEAD_TURNS = 8
_IMPORTS = 5
_FACTS = ("My sister Clara works as a nurse in Leeds.", "I keep two goats, Ada and Bob.", "I live in Porto.")
_QUESTIONS = ("What does Clara do?", "What are my goats called?", "Where do I live?", "Say good morning.")
_OPENING = "I moved to house number {} last week. Tell me a story about a lighthouse by the sea."

Progress = Callable[[int, int], None]


def run(
    model: str | None = None,
    *,
    conversations: int = CONVERSATIONS,
    tokens: int = TOKENS,
    turns: int = TURNS,
    parts: Sequence[str] = PARTS,
    threads: int | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """The parts asked for, JSON-able; `on_progress(done, total)` counts replies. Raises UsageError."""
    unknown = sorted(set(parts) - set(PARTS))
    if unknown or not parts:
        raise UsageError(f"there is no part {', '.join(unknown) or 'named'}; use {', '.join(PARTS)}")
    if turns < 10:
        raise UsageError(f"growth shows over 10 turns or more, not {turns}")
    loaded = load(model, threads=threads)
    replies = {"overhead": _OVERHEAD_TURNS + 1, "concurrency": conversations + 2, "memory": turns}
    done, total = 0, sum(replies[part] for part in parts)

    def step() -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done, total)

    found: dict[str, Any] = {
        "model": loaded.name,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
    if "overhead" in parts:
        found["import_s"] = import_s()
        found["overhead"] = overhead(loaded, step)
    if "concurrency" in parts:
        found["concurrency"] = asyncio.run(concurrency(loaded, conversations, tokens, step))
    if "memory" in parts:
        found["memory"] = memory(loaded, turns, step)
    return found


def import_s() -> float:
    """Seconds of `import mnemos` in a new process, the median of a few."""
    script = "import time; start = time.perf_counter(); import mnemos; print(time.perf_counter() - start)"
    taken = [
        float(
            subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
        )
        for _ in range(_IMPORTS)
    ]
    return round(statistics.median(taken), 4)


def overhead(model: LanguageModel, step: Callable[[], None]) -> dict[str, Any]:
    """Milliseconds of a turn by what they go to, medians over turns: the model's work (traces too), routing
    and paging, waiting for the disk to have what was said, and the loop, which is all that is left.
    `loop_cpu_ms` is what the loop computes, whoever else uses the machine.
    """
    rows: list[dict[str, float]] = []
    with _bank() as bank:
        for fact in _FACTS:
            bank.remember(fact)
        agent = Agent(bank, model=model, sampling=Sampling(max_tokens=16), working_tokens=256)
        recaller = bank.recaller(model)
        recaller.encode_pending()
        for turn in range(_OVERHEAD_TURNS + 1):
            meter = Meter()
            with (
                meter.on(recaller, "recall", "route_page"),
                meter.on(model.decoder, "forward", "model"),
                meter.on(model.decoder, "prefill", "model"),
                meter.on(recaller.encoder, "encode", "model"),
                meter.on(Generation, "__next__", "model"),
                meter.on(bank.store, "add", "durable"),
                meter.on(bank.store, "complete", "durable"),
                meter.on(bank.store, "put_traces", "durable"),
            ):
                started, cpu_started = time.perf_counter(), time.thread_time()
                agent.run_sync(_QUESTIONS[turn % len(_QUESTIONS)])
                total = time.perf_counter() - started
                loop_cpu = time.thread_time() - cpu_started - meter.cpu_s
            step()
            if turn:  # the first one warms up
                seconds = {"turn": total, "loop": total - sum(meter.seconds.values()), **meter.seconds}
                seconds["loop_cpu"] = loop_cpu
                rows.append({name: 1e3 * value for name, value in seconds.items()})
    names = ("turn", "model", "route_page", "durable", "loop", "loop_cpu")
    found = {f"{name}_ms": round(statistics.median(row[name] for row in rows), 3) for name in names}
    return {**found, "turns": len(rows)}


async def concurrency(
    model: LanguageModel, conversations: int, tokens: int, step: Callable[[], None]
) -> dict[str, Any]:
    """So many conversations at once against one, each in a namespace of its own, replies equally long."""
    if not isinstance(model.decoder, SharedDecoder):
        raise UsageError("the model was not loaded for several conversations at once; use `load`")
    scheduler = model.decoder.scheduler
    model = _talkative(model)
    sampling = Sampling(max_tokens=tokens, repetition_penalty=1.1)
    runtime = Runtime(max_turns=conversations)

    def agents(bank: MemoryBank, names: Sequence[str]) -> list[Agent]:
        return [
            Agent(bank, namespace=name, model=model, sampling=sampling, runtime=runtime) for name in names
        ]

    async def reply(agent: Agent, number: int) -> tuple[Reply, float]:
        found = await agent.run(_OPENING.format(number))
        step()
        return found, time.perf_counter()

    with _bank() as bank:
        warm, alone = agents(bank, ["warm", "alone"])
        await reply(warm, 0)
        started = time.perf_counter()
        one, ended = await reply(alone, 0)
        one_s = ended - started
        one_rate = one.usage.decoded_tokens / (one.usage.decode_ms / 1e3)
        batches, steps, piece_s = scheduler.batches, scheduler.steps, scheduler.piece_s
        started = time.perf_counter()
        together = agents(bank, [f"conversation-{index}" for index in range(conversations)])
        ends = await asyncio.gather(*(reply(agent, index) for index, agent in enumerate(together)))
        many_s = max(end for _, end in ends) - started
    batches, steps = scheduler.batches - batches, scheduler.steps - steps
    finish = [end - started for _, end in ends]
    decoded = sum(each.usage.decoded_tokens for each, _ in ends)
    # What is not spent on reading prompts and making traces is spent on decoding, or lost to it.
    decode_s = many_s - (scheduler.piece_s - piece_s)
    return {
        "conversations": conversations,
        "tokens": tokens,
        "one_decode_tokens_per_s": round(one_rate, 2),
        "decode_tokens_per_s": round(decoded / decode_s, 2),
        "decode_ratio": round(decoded / decode_s / one_rate, 3),
        "one_turn_tokens_per_s": round(one.usage.decoded_tokens / one_s, 2),
        "turn_tokens_per_s": round(decoded / many_s, 2),
        "turn_ratio": round(decoded / many_s / (one.usage.decoded_tokens / one_s), 3),
        "finish_mean_s": round(statistics.mean(finish), 3),
        "finish_slowest_s": round(max(finish), 3),
        "slowest_by_mean": round(max(finish) / statistics.mean(finish), 3),
        "batches": batches,
        "mean_batch": round(steps / max(batches, 1), 2),
    }


def memory(model: LanguageModel, turns: int, step: Callable[[], None]) -> dict[str, Any]:
    """How much the process grows over many turns of one conversation, once it is warm: after a tenth."""
    if resident_bytes() is None:
        return {"turns": turns, "growth_percent": None}
    warm_turns, samples = max(turns // 10, 1), []
    with _bank() as bank:
        sampling = Sampling(max_tokens=4)
        agent = Agent(bank, model=model, sampling=sampling, working_tokens=128)
        for turn in range(turns):
            agent.run_sync(_QUESTIONS[turn % len(_QUESTIONS)])
            gc.collect(0)
            samples.append(resident_bytes() or 0)
            step()
    share = max(len(samples) // 20, 1)
    warm = statistics.median(samples[warm_turns : warm_turns + share])
    end = statistics.median(samples[-share:])
    return {
        "turns": turns,
        "warm_turns": warm_turns,
        "warm_mb": round(warm / 1e6, 1),
        "end_mb": round(end / 1e6, 1),
        "growth_percent": round(100 * (end / warm - 1), 2),
    }


def resident_bytes() -> int | None:
    """Of this process; None where the system does not say."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return None
    import resource

    return int(pages) * resource.getpagesize()


def _talkative(model: LanguageModel) -> LanguageModel:
    """The model without an end of turn, so that every reply is as long as may be."""
    import copy
    from dataclasses import replace

    tokenizer = copy.copy(model.tokenizer)
    tokenizer.eos_ids = frozenset()
    return replace(model, tokenizer=tokenizer)


@contextmanager
def _bank() -> Iterator[MemoryBank]:
    with tempfile.TemporaryDirectory(prefix="mnemos-bench-") as directory:
        keys = KeyFile(Path(directory) / "bank.key")
        with MemoryBank.open(Path(directory) / "bank", keys=keys) as bank:
            yield bank
