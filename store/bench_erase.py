"""`mnemos bench erase`: how long it takes until one memory, many, or a whole namespace are gone for good."""

import os
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mnemos.store.keys import KeyFile
from mnemos.store.records import MemoryDraft, Selector, TraceDraft
from mnemos.store.store import Store

NAMESPACE = "bench"
_KEPT = "bench/kept"  # a neighbour that every erase has to leave alone
_GROUP = 250  # memories of one write
_WORDS = 40  # of one memory
_VOCABULARY = 20_000
_KV_BYTES, _ROUTE_BYTES = 1024, 256  # short of what a model keeps: it is the number of frames that counts
_SINGLES = 21
_MANY = 1000


def run(memories: int = 100_000) -> dict[str, Any]:
    """Times from a plan to its receipt; planning is apart. `memories` is at least 50.

    `thousand_s` takes `many` memories that are spread over the bank; `namespace_s` ends where nothing of the
    namespace can be read any more (its keys are gone), `namespace_receipt_s` with the receipt.
    """
    with TemporaryDirectory(prefix="mnemos-bench-") as folder:
        place = Path(folder)
        keys = KeyFile(place / "bank.key")
        with Store.open(place / "bank", keys=keys) as store:
            ids = fill(store, memories)
        return measure(place / "bank", keys, ids)


def measure(bank: Path, keys: KeyFile, ids: Sequence[str]) -> dict[str, Any]:
    """The figures of a bank that `fill` filled with these; they are gone afterwards."""
    single_count = min(_SINGLES, len(ids) // 10)
    picked = random.Random(2).sample(ids, single_count + min(_MANY, len(ids) // 5))
    many = picked[single_count:]
    started = time.perf_counter()
    with Store.open(bank, keys=keys) as store:
        store.count(NAMESPACE)
        open_s = time.perf_counter() - started
        singles = [erase(store, Selector(NAMESPACE, ids=[one])) for one in picked[:single_count]]
        thousand = erase(store, Selector(NAMESPACE, ids=many))
        started = time.perf_counter()
    rewrite_s = time.perf_counter() - started
    with Store.open(bank, keys=keys) as store:
        whole = erase(store, Selector(NAMESPACE, everything=True))
        return {
            "one_ms_p50": round(1000 * statistics.median(single["total_s"] for single in singles), 1),
            "thousand_s": round(thousand["total_s"], 3),
            "thousand_cpu_s": round(thousand["cpu_s"], 3),
            "thousand_plan_s": round(thousand["plan_s"], 3),
            "namespace_s": round(whole["keys"], 3),
            "namespace_receipt_s": round(whole["total_s"], 3),
            "namespace_plan_s": round(whole["plan_s"], 3),
            "open_s": round(open_s, 3),
            "rewrite_s": round(rewrite_s, 3),
            "memories": len(ids),
            "many": len(many),
            "left": store.count(NAMESPACE) + store.count(_KEPT) - 1,
            "encrypted": store.encrypted,
            "cpus": os.cpu_count(),
        }


def fill(store: Store, memories: int) -> list[str]:
    """Ids of new memories of `NAMESPACE`, each with a small trace; one more memory in another namespace."""
    ids: list[str] = []
    texts = make_texts(memories, words=_WORDS)
    for start in range(0, memories, _GROUP):
        drafts = [MemoryDraft(next(texts)) for _ in range(min(_GROUP, memories - start))]
        added = [record.id for record in store.add(NAMESPACE, drafts)]
        kv, route = os.urandom(_KV_BYTES), os.urandom(_ROUTE_BYTES)
        store.put_traces(NAMESPACE, [TraceDraft(one, "bench", _WORDS, kv, route) for one in added])
        ids += added
    store.add(_KEPT, [MemoryDraft("This one stays.")])
    return ids


def erase(store: Store, selector: Selector) -> dict[str, float]:
    """Seconds: `plan_s`, `total_s` and `cpu_s` of the erase, and from its start to the end of each step."""
    started = time.perf_counter()
    plan = store.plan_erase(selector)
    begun, cpu = time.perf_counter(), time.process_time()
    reached: dict[str, float] = {"plan_s": begun - started}
    store.erase(plan, on_step=lambda step: reached.update({step: time.perf_counter() - begun}))
    return {**reached, "total_s": time.perf_counter() - begun, "cpu_s": time.process_time() - cpu}


def make_texts(count: int, *, words: int) -> Iterator[str]:
    """Sentences whose words are as unevenly common as those of a language."""
    chance = random.Random(1)
    vocabulary = _vocabulary(chance)
    shares = list(accumulate(1 / rank for rank in range(1, _VOCABULARY + 1)))
    for _ in range(count):
        yield " ".join(chance.choices(vocabulary, cum_weights=shares, k=words))


def _vocabulary(chance: random.Random) -> Sequence[str]:
    syllables = [first + second for first in "bdfgklmnprstvz" for second in "aeiou"]
    found: dict[str, None] = {}
    while len(found) < _VOCABULARY:
        found["".join(chance.choices(syllables, k=chance.randint(1, 4)))] = None
    return list(found)
