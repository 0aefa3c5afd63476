"""Brings KV blocks from the bank to where attention reads them, and keeps the recently used ones decoded."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock

from mnemos.attention.kv import SpanKV

DEFAULT_BUDGET_BYTES = 512 * 1024 * 1024

Key = tuple[str, str]  # namespace, memory id


class Pager:
    """An LRU of decoded KV blocks in host memory, bounded in bytes.

    `read(namespace, id)` gives a block's payload, `decode(payload)` its spans. What was erased is zeroed
    here too.
    """

    def __init__(
        self,
        read: Callable[[str, str], bytes],
        decode: Callable[[bytes], list[SpanKV]],
        *,
        budget_bytes: int = DEFAULT_BUDGET_BYTES,
    ) -> None:
        self._read = read
        self._decode = decode
        self._budget = budget_bytes
        self._held: OrderedDict[Key, list[SpanKV]] = OrderedDict()
        self._lock = Lock()
        self._drops = 0  # so far: what was read before one may be what it was about
        self.bytes = 0
        self.hits = 0
        self.misses = 0

    def page(self, namespace: str, ids: Sequence[str]) -> list[list[SpanKV]]:
        """The spans of each memory, in order, from host memory where held, otherwise from the bank."""
        return [self._one((namespace, memory_id)) for memory_id in ids]

    def keys(self) -> list[tuple[str, str]]:
        """(namespace, memory id) of what is held."""
        with self._lock:
            return list(self._held)

    def drop(self, namespace: str | None = None, memory_id: str | None = None) -> None:
        """Zero and let go of one memory's block, a namespace's blocks, or all."""
        with self._lock:
            self._drops += 1
            for key in list(self._held):
                if namespace in (None, key[0]) and memory_id in (None, key[1]):
                    self._release(key, zero=True)

    def _one(self, key: Key) -> list[SpanKV]:
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                self.hits += 1
                return self._held[key]
            self.misses += 1
            drops = self._drops
        spans = self._decode(self._read(*key))
        size = sum(span.nbytes for span in spans)
        with self._lock:
            if size <= self._budget and key not in self._held and drops == self._drops:
                self._held[key] = spans
                self.bytes += size
                while self.bytes > self._budget:
                    self._release(next(iter(self._held)), zero=False)
        return spans

    def _release(self, key: Key, *, zero: bool) -> None:
        for span in self._held.pop(key):
            self.bytes -= span.nbytes
            if zero:
                span.zero_()
