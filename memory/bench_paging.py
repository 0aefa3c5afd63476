"""`mnemos bench paging`: time to first token with memories paged in, against reading the same memories as
text.
"""

import os
import random
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from mnemos.attention.models import LanguageModel, load
from mnemos.memory.bank import DEFAULT_NAMESPACE, MemoryBank
from mnemos.memory.bench_encode import encoding
from mnemos.memory.recall import Recaller
from mnemos.store.keys import KeyFile

_ENCODED = 8  # memories whose encoding is measured
QUESTION = "What did I tell you about the garden?"
_WORDS = [
    "garden",
    "river",
    "window",
    "letter",
    "winter",
    "morning",
    "market",
    "bridge",
    "station",
    "orchard",
]
_WORDS += [
    "kitchen",
    "teacher",
    "captain",
    "music",
    "village",
    "mountain",
    "silver",
    "paper",
    "summer",
    "island",
]


def run(
    *, memories: int, tokens: int, model: str | None = None, repeats: int = 5, threads: int | None = None
) -> dict[str, Any]:
    """Times in seconds, medians of interleaved repeats; both sides include routing.

    `ttft_paged_s` starts with no decoded block in host memory: each one is read from the bank's files,
    decrypted and dequantised.
    """
    loaded = load(model, threads=threads)
    loaded.require_full_resolution()
    with TemporaryDirectory(prefix="mnemos-bench-") as folder:
        place = Path(folder)
        with MemoryBank.open(place / "bank", keys=KeyFile(place / "bank.key")) as bank:
            _fill(bank, loaded, memories, tokens)
            recaller = bank.recaller(loaded)
            recaller.encode_pending()
            paged, text = [], []
            for _ in range(repeats + 1):
                paged.append(_paged_s(recaller, loaded, memories))
                text.append(_text_s(recaller, loaded, memories))
            stats = bank.stats()
            written = encoding(bank.store, recaller, bank.list(limit=_ENCODED), repeats)
    paged_s, text_s = statistics.median(paged[1:]), statistics.median(text[1:])
    return {
        "ttft_text_s": round(text_s, 4),
        "ttft_paged_s": round(paged_s, 4),
        "ratio": round(text_s / paged_s, 2),
        **written,
        "memories": memories,
        "tokens_per_memory": tokens,
        "memory_tokens": stats.tokens,
        "kv_bytes_per_token": round(stats.trace_bytes / stats.tokens),
        "repeats": repeats,
        "model": loaded.name,
        "dtype": str(loaded.decoder.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def _fill(bank: MemoryBank, model: LanguageModel, memories: int, tokens: int) -> None:
    """Memories of about `tokens` tokens each, made of everyday words; equal from run to run."""
    chance = random.Random(7)
    for _ in range(memories):
        words: list[str] = []
        while len(model.tokenizer.encode(" ".join(words))) < max(tokens - 12, 1):
            words.append(chance.choice(_WORDS))
        bank.remember(" ".join(words))


def _paged_s(recaller: Recaller, model: LanguageModel, memories: int) -> float:
    recaller.pager.drop()
    words = model.tokenizer.encode(QUESTION)
    started = time.perf_counter()
    head, tail = _around(model)
    context = recaller.new_context(recaller.encoder.prefix.tokens + len(head) + len(words))
    model.decoder.prefill(head, context)
    recall = recaller.recall(
        QUESTION, context, words, namespace=DEFAULT_NAMESPACE, k=memories, selective=False
    )
    prompt = [*head, *words, *tail]
    cache = recaller.new_context(recaller.encoder.prefix.tokens + recall.tokens + len(prompt))
    reading = model.calibration.reading_for(len(recall.spans))
    cache.page_in(
        recall.spans,
        temperature=reading.temperature,
        mass_scale=reading.mass_scale,
        stride=reading.stride,
    )
    model.decoder.forward(prompt, cache).argmax()
    return time.perf_counter() - started


def _text_s(recaller: Recaller, model: LanguageModel, memories: int) -> float:
    words = model.tokenizer.encode(QUESTION)
    started = time.perf_counter()
    found = recaller.search(QUESTION, namespace=DEFAULT_NAMESPACE, limit=memories)
    head, tail = _around(model)
    lines = [token for r in found for line in recaller.encoder.lines_of(r.memory) for token in line]
    prompt = [*recaller.encoder.prefix_tokens, *lines, *head, *words, *tail]
    model.decoder.forward(prompt, model.decoder.new_cache(len(prompt))).argmax()
    return time.perf_counter() - started


def _around(model: LanguageModel) -> tuple[list[int], list[int]]:
    """Token ids before and after a message that follows the memories of a system turn."""
    parts = [model.template.parts(role, model.tokenizer) for role in ("system", "user", "assistant")]
    (_, system_tail), (user_head, user_tail), (reply_head, _) = parts
    return [*system_tail, *user_head], [*user_tail, *reply_head]
