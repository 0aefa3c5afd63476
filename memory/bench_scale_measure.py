"""The measuring half of `mnemos bench scale`: one bank, in a process that holds nothing else."""

import json
import os
import random
import resource
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mnemos.attention.kv import KVCache, Span
from mnemos.attention.models import LanguageModel, load
from mnemos.attention.routing import route_query
from mnemos.memory.bank import MemoryBank
from mnemos.memory.passages import question_about
from mnemos.memory.recall import Recaller
from mnemos.memory.recall_measures import percentile
from mnemos.store.keys import KeyFile

NAMESPACE = "bench"
PAGED = 8  # memories in one turn
_COLD = 5
_WRITES = 10
_WARMING = 8  # questions that are not counted
_PAGINGS = 12
_SETTLING_S = 600.0  # at most, for what a namespace's first searches leave to a thread
_MIB = 1 << 20


def main() -> None:
    """Reads what to measure from standard input, as JSON, and writes the figures to standard output."""
    asked = json.load(sys.stdin)
    measured = measure(Path(asked["place"]), asked["model"], asked["queries"], asked["threads"])
    json.dump(measured, sys.stdout)


def measure(place: Path, model: str | None, queries: int, threads: int | None) -> dict[str, Any]:
    """Figures of the bank at `place`/bank: seconds, milliseconds, MB (2^20 bytes) and GB (1e9 bytes).

    Cold is the first question after opening, with the bank's files out of the system's page cache. Warm are
    further questions, each another one, with the bank's databases in that cache, as after a while of use, and
    its segments as they come, and once the thread beside the searches has read a large namespace's vectors
    and made those that are missing. Cached are the same questions and memories once more, none of them being
    held, with what they need in the system's cache. `query_ms` is the model's part of a route: its pass over
    the question. `remember_ms` and `forget_ms` are until the disk has it, the model left out.
    """
    loaded = load(model, threads=threads)
    model_mb = _rss_mb()
    keys = KeyFile(place / "bank.key")
    chance = random.Random(5)
    open_s: list[float] = []
    cold: list[float] = []
    for _ in range(_COLD):
        forget_pages(place / "bank")
        started = time.perf_counter()
        with MemoryBank.open(place / "bank", keys=keys) as bank:
            bank.store.count(NAMESPACE)
            open_s.append(time.perf_counter() - started)
            recaller = bank.recaller(loaded)
            cold.append(_route(recaller, questions(bank, 1, chance)[0])[0])
    read_databases(place / "bank")
    with MemoryBank.open(place / "bank", keys=keys) as bank:
        recaller = bank.recaller(loaded)
        asked = questions(bank, queries + _WARMING, chance)
        for question in asked[:_WARMING]:
            _route(recaller, question)
        if recaller.vectors is not None:
            recaller.vectors.wait(_SETTLING_S)
        routed = [_route(recaller, question) for question in asked[_WARMING:]]
        route_ms, query_ms = [each[0] for each in routed], [each[1] for each in routed]
        vivid = sorted(bank.store.kv_sizes(NAMESPACE))
        route_cpu_ms, query_cpu_ms = [each[2] for each in routed], [each[3] for each in routed]
        places = [chance.sample(vivid, min(PAGED, len(vivid))) for _ in range(_PAGINGS)]
        page_ms, page_cpu_ms = _paging(recaller, places)
        recaller.routes.drop()
        cached_ms = [_route(recaller, question)[0] for question in asked][_WARMING:]
        cached_page_ms, _ = _paging(recaller, places)
        rss_mb = _rss_mb()
        remember_ms, ids = _remembering(bank, recaller)
        forget_ms = _forgetting(bank, ids)
        encrypted = bank.encrypted
    return {
        "open_s": round(statistics.median(open_s), 3),
        "rss_mb": round(rss_mb),
        "rss_model_mb": round(model_mb),
        "disk_gb": round(_disk_bytes(place / "bank") / 1e9, 3),
        "route_ms_p50": round(statistics.median(route_ms), 1),
        "route_ms_p95": round(percentile(route_ms, 95), 1),
        "route_cold_ms_p50": round(statistics.median(cold), 1),
        "route_cold_ms_p95": round(percentile(cold, 95), 1),
        "query_ms": round(statistics.median(query_ms), 1),
        "page_ms": round(statistics.median(page_ms), 1),
        "route_cpu_ms": round(statistics.median(route_cpu_ms), 1),
        "query_cpu_ms": round(statistics.median(query_cpu_ms), 1),
        "page_cpu_ms": round(statistics.median(page_cpu_ms), 1),
        "turn_ms_p50": round(statistics.median(route_ms) + statistics.median(page_ms), 1),
        "route_cached_ms_p50": round(statistics.median(cached_ms), 1),
        "page_cached_ms": round(statistics.median(cached_page_ms), 1),
        "turn_cached_ms_p50": round(statistics.median(cached_ms) + statistics.median(cached_page_ms), 1),
        "remember_ms": round(statistics.median(remember_ms), 1),
        "forget_ms": round(statistics.median(forget_ms), 1),
        "encrypted": encrypted,
    }


def questions(bank: MemoryBank, count: int, chance: random.Random) -> list[str]:
    """About memories at random places of the bank."""
    low, high = bank.store.ends(NAMESPACE)
    found: list[str] = []
    while len(found) < count:
        for record in bank.store.at(NAMESPACE, [chance.randint(low, high)]):
            found += [] if record is None else [question_about(record.text, chance)]
    return found


def _route(recaller: Recaller, question: str) -> tuple[float, float, float, float]:
    """Milliseconds of a whole route for 8 memories and of the model's pass alone: by the clock on the wall,
    then of the processor.
    """
    context, words = recaller.question(question)
    model: LanguageModel = recaller.model
    started, cpu = time.perf_counter(), time.process_time()
    route_query(model.decoder, model.calibration, context, words)
    query_ms, query_cpu_ms = (time.perf_counter() - started) * 1e3, (time.process_time() - cpu) * 1e3
    cpu = time.process_time()
    recall = recaller.recall(
        question, context, words, namespace=NAMESPACE, k=PAGED, selective=False, as_text=True
    )
    return recall.route_ms, query_ms, (time.process_time() - cpu) * 1e3, query_cpu_ms


def _paging(recaller: Recaller, places: Sequence[Sequence[str]]) -> tuple[list[float], list[float]]:
    """Milliseconds of bringing each group of vivid memories from the bank's files into a cache where the
    model attends to them, none of them held before; by the clock on the wall, and of the processor.
    """
    reading = recaller.model.calibration.reading_for(PAGED)
    cache = recaller.new_context(recaller.model.config.max_positions // 2)
    times, cpu_times = [], []
    for chosen in places:
        recaller.pager.drop()
        cache.zero_()
        cache.load_prefix(recaller.encoder.prefix)
        started, cpu = time.perf_counter(), time.process_time()
        found = recaller.pager.page(NAMESPACE, chosen)
        cache.page_in(_fitting(cache, (span for spans in found for span in spans)), stride=reading.stride)
        times.append((time.perf_counter() - started) * 1e3)
        cpu_times.append((time.process_time() - cpu) * 1e3)
    return times, cpu_times


def _fitting(cache: KVCache, spans: Iterable[Span]) -> list[Span]:
    """As many as there is room for: all of them, unless the model's window is a very small one."""
    room, found = cache.capacity - cache.length, list[Span]()
    for span in spans:
        if span.tokens <= room:
            room -= span.tokens
            found.append(span)
    return found


def _remembering(bank: MemoryBank, recaller: Recaller) -> tuple[list[float], list[str]]:
    """Milliseconds of writing a memory and a trace for it, and the memories' ids."""
    times, ids = [], []
    for number in range(_WRITES):
        started = time.perf_counter()
        memory = bank.remember(f"Number {number}: the garden gate was painted green.", namespace=NAMESPACE)
        times.append((time.perf_counter() - started) * 1e3)
        ids.append(memory.id)
    for at, draft in enumerate(
        recaller.encoder.encode([bank.get(each, namespace=NAMESPACE) for each in ids])
    ):
        started = time.perf_counter()
        bank.store.put_traces(NAMESPACE, [draft])
        times[at] += (time.perf_counter() - started) * 1e3
    return times, ids


def _forgetting(bank: MemoryBank, ids: Sequence[str]) -> list[float]:
    times = []
    for memory_id in ids:
        started = time.perf_counter()
        bank.forget(bank.plan_forget(namespace=NAMESPACE, ids=[memory_id]))
        times.append((time.perf_counter() - started) * 1e3)
    return times


def forget_pages(folder: Path) -> None:
    """Asks the system to let go of what it holds of these files in its page cache."""
    for file in folder.rglob("*"):
        if file.is_file():
            fd = os.open(file, os.O_RDONLY)
            try:
                os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)


def read_databases(folder: Path) -> None:
    """Has the system take the databases and keys of a bank into its page cache."""
    for file in [*folder.glob("*.db"), *folder.glob("namespaces/*.db"), *folder.glob("keys/*")]:
        with file.open("rb") as content:
            while content.read(_MIB):
                pass


def _disk_bytes(folder: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


def _rss_mb() -> float:
    """The most that this process ever had in memory."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / _MIB if sys.platform == "darwin" else most / 1024
