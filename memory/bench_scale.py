"""`mnemos bench scale`: what opening, routing, paging, remembering and forgetting cost as a bank grows.

Texts are real, or made up without a file of them; traces are put together from a few that the model made
(`bench_scale_traces.py`). Each bank is measured in a process of its own (`bench_scale_measure.py`).
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from mnemos.attention.encode import Trace
from mnemos.attention.models import LanguageModel, load
from mnemos.errors import BankFullError, MnemosError, UsageError
from mnemos.memory.bank import MemoryBank
from mnemos.memory.bench_scale_traces import TraceMaker
from mnemos.memory.convert import to_memory
from mnemos.memory.encoder import MemoryEncoder
from mnemos.memory.passages import passages
from mnemos.memory.word_index import WordIndex
from mnemos.store.keys import KeyFile
from mnemos.store.records import MemoryDraft

NAMESPACE = "bench"
MEMORY_TOKENS = 100
_GROUP = 2000  # memories written together
_SPAN = timedelta(days=5 * 365)  # over which they are dated
_FIRST_DAY = datetime(2021, 1, 1, tzinfo=UTC)
_ROOM_BYTES_PER_TOKEN = 120  # of text, index, routing keys and rows on the disk, more than there are
_MEASURE = "from mnemos.memory.bench_scale_measure import main; main()"
SYNTHETIC = (
    "routing keys are drawn from the tokens of {encoded} really encoded memories, and vivid memories hold "
    "the KV of one of those: sizes and distributions are real, what is found is not"
)

OnProgress = Callable[[int, int], None]


def run(
    *,
    tokens: Sequence[int],
    books: Path | None = None,
    vivid_gb: float = 5.0,
    encoded: int = 128,
    queries: int = 24,
    model: str | None = None,
    threads: int | None = None,
    path: Path | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Figures by size, in the order of `tokens`; `bench_scale_measure.measure` says which.

    With `path`, banks are left there and one that is there already is measured again. Raises UsageError,
    NotFoundError, and BankFullError when the disk has no room for a size.
    """
    if min(tokens) < MEMORY_TOKENS:
        raise UsageError(f"a bank to measure has {MEMORY_TOKENS} tokens or more")
    loaded = load(model, threads=threads)
    loaded.require_full_resolution()
    found: dict[str, Any] = {}
    with TemporaryDirectory(prefix="mnemos-bench-") as folder:
        place = Path(folder) if path is None else path
        place.mkdir(parents=True, exist_ok=True)
        maker: list[TraceMaker] = []
        for size in tokens:
            built = place / str(size)
            if not (built / "built.json").exists():
                _check_room(place, size, vivid_gb)
                _build(built, size, loaded, books, vivid_gb, encoded, maker, on_progress)
            found[str(size)] = {
                **json.loads((built / "built.json").read_text()),
                **_measured(built, model, queries, threads),
            }
    return {
        "sizes": found,
        "synthetic": SYNTHETIC.format(encoded=encoded),
        "text": "made up" if books is None else books.name,
        "memory_tokens": MEMORY_TOKENS,
        "vivid_gb": vivid_gb,
        "queries": queries,
        "model": loaded.name,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
    }


def _check_room(place: Path, size: int, vivid_gb: float) -> None:
    need = size * _ROOM_BYTES_PER_TOKEN + min(int(vivid_gb * 1e9), size * 10_000)
    free = shutil.disk_usage(place).free
    if free < need:
        raise BankFullError(
            f"A bank of {size:,} tokens takes up to {need / 1e9:.0f} GB and {place} has {free / 1e9:.0f}; "
            "name another place with --path, or fewer tokens or a smaller --vivid-gb."
        )


def _build(
    place: Path,
    size: int,
    model: LanguageModel,
    books: Path | None,
    vivid_gb: float,
    encoded: int,
    maker: list[TraceMaker],
    on_progress: OnProgress | None,
) -> None:
    """A bank of `size` tokens. `maker` is filled by the first one."""
    started = time.perf_counter()
    place.mkdir(exist_ok=True)
    keys = KeyFile(place / "bank.key")
    with MemoryBank.open(place / "bank", keys=keys) as bank:
        encoder = bank.recaller(model).encoder
        if not maker:
            traces = _encode(bank, encoder, passages(books, MEMORY_TOKENS), encoded, on_progress)
            maker.append(TraceMaker(traces, encoder.fingerprint))
        made = maker[0]
        memories = max(round(size / made.tokens), 1)
        vivid = min(int(vivid_gb * 1e9 / made.kv_bytes), memories)
        texts = passages(books, MEMORY_TOKENS)
        tokens = 0
        for start in range(0, memories, _GROUP):
            count = min(_GROUP, memories - start)
            drafts = list(_drafts(texts, start, count, memories))
            added = bank.store.add(NAMESPACE, drafts)
            traced = [
                # Vivid ones are spread evenly over the bank.
                made.draft(
                    record.id,
                    is_vivid=(start + at) * vivid // memories != (start + at + 1) * vivid // memories,
                )
                for at, record in enumerate(added)
            ]
            for at in range(0, count, 100):  # so that few KV payloads are held at once
                bank.store.put_traces(NAMESPACE, traced[at : at + 100])
            tokens += sum(draft.tokens for draft in traced)
            if on_progress is not None:
                on_progress(start + count, memories)
        encoder.adopt()
        if isinstance(vectors := bank.recaller(model).vectors, WordIndex):
            vectors.complete(NAMESPACE)  # as in a bank that grew in use: they lie in shards
    built = {
        "memories": memories,
        "tokens": tokens,
        "vivid": vivid,
        "build_s": round(time.perf_counter() - started, 1),
    }
    (place / "built.json").write_text(json.dumps(built))


def _encode(
    bank: MemoryBank,
    encoder: MemoryEncoder,
    texts: Iterator[str],
    count: int,
    on_progress: OnProgress | None,
) -> list[Trace]:
    """Real traces of the first passages, of one span each."""
    found: list[Trace] = []
    for record in bank.store.add("encoded", list(_drafts(texts, 0, count, count))):
        (draft,) = encoder.encode([to_memory(record)])
        found.append(Trace(draft.tokens, draft.kv, draft.route))
        if on_progress is not None:
            on_progress(len(found), count)
    bank.forget(bank.plan_forget(namespace="encoded", everything=True))
    return found


def _drafts(texts: Iterator[str], start: int, count: int, of: int) -> Iterator[MemoryDraft]:
    for at, text in enumerate(islice(texts, count)):
        yield MemoryDraft(text, speaker="User", created_at=_FIRST_DAY + _SPAN * ((start + at) / of))


def _measured(place: Path, model: str | None, queries: int, threads: int | None) -> dict[str, Any]:
    """What a new process measures."""
    asked = {"place": str(place), "model": model, "queries": queries, "threads": threads}
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE],
        input=json.dumps(asked),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise MnemosError(f"measuring the bank at {place} failed with exit code {done.returncode}")
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured
