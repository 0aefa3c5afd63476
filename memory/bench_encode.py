"""What encoding memories costs over reading the same tokens: a part of `mnemos bench paging`."""

import statistics
import time
from collections.abc import Sequence

from mnemos.attention.models import LanguageModel
from mnemos.attention.scheduling import PIECE_TOKENS, pieces
from mnemos.memory.bank import DEFAULT_NAMESPACE
from mnemos.memory.recall import Recaller
from mnemos.memory.records import Memory
from mnemos.store.store import Store


def encoding(
    store: Store, recaller: Recaller, memories: Sequence[Memory], repeats: int
) -> dict[str, float | int]:
    """Seconds of encoding memories (read, quantised, sealed, durable) and of a plain prefill of each one's
    tokens behind the same prefix, taken in turns, and the one by the other.
    """
    encoded, prefilled = [], []
    tokens = sum(len(span) for memory in memories for span in recaller.encoder.spans_of(memory))
    for _ in range(repeats + 1):
        prefilled.append(_prefill_s(recaller, recaller.model, memories))
        started = time.perf_counter()
        store.put_traces(DEFAULT_NAMESPACE, recaller.encoder.encode(memories))
        encoded.append(time.perf_counter() - started)
    encode_s, prefill_s = statistics.median(encoded[1:]), statistics.median(prefilled[1:])
    return {
        "encode_s": round(encode_s, 4),
        "prefill_s": round(prefill_s, 4),
        "encode_over_prefill": round(encode_s / prefill_s, 3),
        "encode_tokens_per_s": round(tokens / encode_s),
    }


def _prefill_s(recaller: Recaller, model: LanguageModel, memories: Sequence[Memory]) -> float:
    prefix = recaller.encoder.prefix
    started = time.perf_counter()
    for memory in memories:
        for span in recaller.encoder.spans_of(memory):
            cache = model.decoder.new_cache(prefix.tokens + len(span))
            cache.load_prefix(prefix)
            for piece in pieces(span, PIECE_TOKENS):
                model.decoder.prefill(piece, cache)
    return time.perf_counter() - started
