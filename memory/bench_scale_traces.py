"""Traces for large measured banks: a few made by the model, the rest put together from them.

Encoding a token takes milliseconds, so a bank of millions of tokens can't be encoded for a measurement. Each
memory gets routing keys whose rows are drawn at random from those of really encoded memories, under one of
their scales, so size and distribution are real; a vivid one gets the KV of a really encoded memory as it is.
What such a bank routes to says nothing about recall.
"""

from dataclasses import dataclass

import numpy as np

from mnemos.attention.encode import Trace
from mnemos.attention.memory_codec import VECTOR_HEAD_BYTES, decode_route
from mnemos.store.records import TraceDraft


@dataclass(frozen=True, slots=True)
class _Source:
    """One really encoded memory: its KV payload and what of its routing payload comes before the keys."""

    tokens: int
    kv: bytes
    head: bytes  # of the routing payload, up to its keys
    tail: bytes  # scales, hidden mean, and vectors


class TraceMaker:
    """Puts traces together from really encoded ones; the same ones from run to run."""

    def __init__(self, traces: list[Trace], fingerprint: str, *, seed: int = 0) -> None:
        self._fingerprint = fingerprint
        self._chance = np.random.default_rng(seed)
        rows = []
        self._sources: list[_Source] = []
        for trace in traces:
            record = decode_route(trace.route)
            heads, tokens, dim = record.keys.shape
            size = heads * tokens * dim  # one byte each
            kept = 0 if record.vectors is None else VECTOR_HEAD_BYTES + record.vectors.numel()
            # fp16: scales and hidden mean; then vectors, one byte a number
            tail = 2 * heads * dim + 2 * record.hidden.shape[0] + kept
            start = len(trace.route) - tail - size
            keys = np.frombuffer(trace.route, dtype=np.uint8, count=size, offset=start)
            rows.append(keys.reshape(tokens, heads * dim))
            self._sources.append(_Source(tokens, trace.kv, trace.route[:start], trace.route[start + size :]))
        self._rows = np.concatenate(rows)  # [tokens of all, heads * dim]

    @property
    def kv_bytes(self) -> float:
        """Of a memory's KV payload, mean."""
        return float(np.mean([len(source.kv) for source in self._sources]))

    @property
    def tokens(self) -> float:
        """Of a memory, mean."""
        return float(np.mean([source.tokens for source in self._sources]))

    def draft(self, memory_id: str, *, is_vivid: bool) -> TraceDraft:
        """A trace for one memory."""
        source = self._sources[int(self._chance.integers(len(self._sources)))]
        drawn = self._chance.integers(len(self._rows), size=source.tokens)
        route = source.head + self._rows[drawn].tobytes() + source.tail
        kv = source.kv if is_vivid else b""
        return TraceDraft(memory_id, self._fingerprint, source.tokens, kv, route)
