"""`mnemos bench ingest`: what the store adds to a plain sequential write of the same bytes."""

import os
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mnemos.store.bench_erase import make_texts
from mnemos.store.keys import KeyFile
from mnemos.store.records import MemoryDraft, TraceDraft
from mnemos.store.store import Store

NAMESPACE = "bench"
RUNS = 5
GROUP = 64  # memories of one durable write, as the encoder makes them
_WORDS = 120  # of one memory: a chunk of a document
_KV_BYTES = 7300  # a token: the default model's, at int4
_ROUTE_BYTES = 130  # a token


def run(memories: int = 320, tokens: int = 180, folder: Path | None = None) -> dict[str, Any]:
    """Medians of runs that take turns: the store (encrypted, durable group by group), and one file that gets
    as many bytes in sequence and one fsync at the end.

    `tokens` of each memory sizes its trace, which is random bytes: quantised KV does not compress. `folder`
    says which disk is measured. Needs three times the bytes of one run there.
    """
    chance = random.Random(3)
    kv = [chance.randbytes(tokens * _KV_BYTES) for _ in range(min(GROUP, memories))]
    route = [chance.randbytes(tokens * _ROUTE_BYTES) for _ in range(len(kv))]
    texts = list(make_texts(memories, words=_WORDS))
    store_s: list[float] = []
    plain_s: list[float] = []
    sizes: list[int] = []
    with TemporaryDirectory(prefix="mnemos-bench-", dir=folder) as place:
        for number in range(RUNS):
            bank = Path(place) / f"bank-{number}"
            store_s.append(_fill(bank, texts, tokens, kv, route))
            sizes.append(sum(file.stat().st_size for file in bank.rglob("*") if file.is_file()))
            plain_s.append(_write(Path(place) / f"plain-{number}", sizes[-1], [*kv, *route]))
    return {
        "ratio": round(statistics.median(p / s for p, s in zip(plain_s, store_s, strict=True)), 3),
        "store_mb_per_s": round(statistics.median(sizes) / 1e6 / statistics.median(store_s), 1),
        "plain_mb_per_s": round(statistics.median(sizes) / 1e6 / statistics.median(plain_s), 1),
        "memories_per_s": round(memories / statistics.median(store_s), 1),
        "bytes": int(statistics.median(sizes)),
        "memories": memories,
        "tokens": tokens,
        "group": GROUP,
        "runs": RUNS,
        "encrypted": True,
        "cpus": os.cpu_count(),
    }


def _fill(
    bank: Path, texts: Sequence[str], tokens: int, kv: Sequence[bytes], route: Sequence[bytes]
) -> float:
    """Seconds for the texts and then the traces of each group."""
    with Store.open(bank, keys=KeyFile(bank.with_suffix(".key"))) as store:
        started = time.perf_counter()
        for start in range(0, len(texts), GROUP):
            added = store.add(NAMESPACE, [MemoryDraft(words) for words in texts[start : start + GROUP]])
            store.put_traces(
                NAMESPACE,
                [
                    TraceDraft(record.id, "bench", tokens, kv[at], route[at])
                    for at, record in enumerate(added)
                ],
            )
        return time.perf_counter() - started


def _write(path: Path, size: int, parts: Sequence[bytes]) -> float:
    """Seconds for `size` bytes of these, over and over, into one file that is then synced."""
    started = time.perf_counter()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        left = size
        while left:
            for part in parts:
                left -= os.write(fd, memoryview(part)[:left])
        os.fsync(fd)
    finally:
        os.close(fd)
    return time.perf_counter() - started
