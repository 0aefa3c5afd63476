"""Brings KV blocks from the bank to host memory, and keeps some of them there."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from threading import Lock

from mnemos.attention.admission import S3Fifo
from mnemos.attention.kv import SpanKV
from mnemos.errors import NotFoundError
from mnemos.memory.records import Tier

DEFAULT_BUDGET_BYTES = 512 * 1024 * 1024

Key = tuple[str, str]  # namespace, memory id
Decode = Callable[[bytes | bytearray], list[SpanKV]]
ReadMany = Callable[[str, Sequence[str], Decode], Mapping[str, list[SpanKV]]]


class Pager:
    """KV blocks in host memory, bounded in bytes; `admission.py` says which.

    `read(namespace, id)` gives a block's payload and `decode(payload)` its spans; `read_many(namespace, ids,
    decode)` the spans of several at once, as far as they are there. What was erased is zeroed here too.
    """

    def __init__(
        self,
        read: Callable[[str, str], bytes],
        decode: Decode,
        *,
        budget_bytes: int = DEFAULT_BUDGET_BYTES,
        read_many: ReadMany | None = None,
    ) -> None:
        self._read = read
        self._read_many = read_many
        self._decode = decode
        self._held: dict[Key, list[SpanKV]] = {}
        self._policy: S3Fifo[Key] = S3Fifo(budget_bytes)
        self._lock = Lock()
        self._drops = 0  # so far: what was read before one may be what it was about
        self.bytes = 0
        self.hits = 0
        self.misses = 0

    def page(self, namespace: str, ids: Sequence[str]) -> list[list[SpanKV]]:
        """The spans of each memory, in order, from host memory where held, otherwise from the bank.

        Raises NotFoundError when one is gone.
        """
        read, drops = self._together(namespace, ids)
        return [self._one((namespace, each), read.get(each), drops) for each in ids]

    def page_present(self, namespace: str, ids: Sequence[str]) -> dict[str, list[SpanKV]]:
        """As `page`, by id; what is gone is left out."""
        read, drops = self._together(namespace, ids)
        found: dict[str, list[SpanKV]] = {}
        for memory_id in ids:
            with suppress(NotFoundError):
                found[memory_id] = self._one((namespace, memory_id), read.get(memory_id), drops)
        return found

    def held(self, namespace: str, ids: Sequence[str]) -> dict[str, Tier]:
        """Which of these memories are held, and where, by id."""
        with self._lock:
            return {each: "host" for each in ids if (namespace, each) in self._held}

    def held_bytes(self) -> dict[Tier, int]:
        """Bytes of all namespaces."""
        return {"host": self.bytes}

    def keys(self) -> list[tuple[str, str]]:
        """(namespace, memory id) of what is held, or remembered to have been."""
        with self._lock:
            return self._policy.known()

    def drop(self, namespace: str | None = None, memory_id: str | None = None) -> None:
        """Zero and let go of one memory's block, a namespace's blocks, or all."""
        with self._lock:
            self._drops += 1
            for key in self._policy.known():
                if namespace in (None, key[0]) and memory_id in (None, key[1]):
                    self._policy.drop(key)
                    for span in self._held.pop(key, ()):
                        span.zero_()
            self.bytes = self._policy.bytes

    def _together(self, namespace: str, ids: Sequence[str]) -> tuple[Mapping[str, list[SpanKV]], int]:
        """What one read brings of several blocks that are not held; and what had been dropped before it."""
        with self._lock:
            drops = self._drops
            missing = [each for each in dict.fromkeys(ids) if (namespace, each) not in self._held]
        if self._read_many is None or len(missing) < 2:
            return {}, drops
        return self._read_many(namespace, missing, self._decode), drops

    def _one(self, key: Key, read: list[SpanKV] | None, drops: int) -> list[SpanKV]:
        with self._lock:
            if key in self._held:
                self._policy.touch(key)
                self.hits += 1
                return self._held[key]
            self.misses += 1
            if read is None:
                drops = self._drops
        spans = self._decode(self._read(*key)) if read is None else read
        size = sum(span.nbytes for span in spans)
        with self._lock:
            if key not in self._held and drops == self._drops:
                leaving = self._policy.admit(key, size)
                if leaving is not None:
                    self._held[key] = spans
                    for each in leaving:
                        del self._held[each]
                    self.bytes = self._policy.bytes
        return spans
