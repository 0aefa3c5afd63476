"""Vectors that a sentence encoder makes of memories' words, as an index to search.

They lie beside the token keys in route frames. A memory whose trace was made before there was an encoder gets
its vectors once its namespace is searched, a few at a time; those are kept in the shards. The shards of a
namespace too large to be read in a search's way are read beside the searches, which find nothing by vectors
until that is done.
"""

import time
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from mnemos.attention.embedder import Embedder
from mnemos.attention.memory_codec import decode_route
from mnemos.memory.convert import to_memory
from mnemos.memory.large_vectors import LargeVectors
from mnemos.memory.layout import said_in
from mnemos.memory.quiet_worker import QuietWorker
from mnemos.memory.vector_index import VectorIndex
from mnemos.memory.vectors_held import Codes, HeldVectors
from mnemos.memory.word_lists import lists_of
from mnemos.store.store import Store

SEARCHED_MEMORIES = 50_000  # above these a namespace is large
MADE_S = 0.05  # of a search, to make vectors that are missing
_SAVED = 256  # memories that are kept at once
_READ = 64  # frames read at once beside a search
_LAST_PIECE_S = 60.0  # at most, for the worker to finish


class WordIndex(VectorIndex):
    """As `VectorIndex`; what takes long goes on in a thread of its own, until `close`."""

    def __init__(self, store: Store, embedder: Embedder) -> None:
        self._reader = _Reader(store, embedder)
        self._bank = store
        self._dims = embedder.dims
        self._lists = lists_of(embedder.name, embedder.dims)
        self._large: dict[str, LargeVectors] = {}
        self._counted: dict[str, int] = {}  # namespaces found to be large, at which erase epoch
        self._to_make: dict[str, deque[str]] = {}
        self.worker = QuietWorker(self._piece)
        # One list: what is small enough to be searched at once stays flat.
        super().__init__(store, self._reader, embedder.form, np.zeros((1, embedder.dims), dtype=np.int8))

    def nearest(self, namespace: str, query: Codes, count: int) -> dict[str, float]:
        """As `VectorIndex.nearest`; nothing while a large namespace is being read."""
        self.worker.searched()
        with self._lock:
            held = self.catch_up(namespace)
            large = self._large.get(namespace)
            return held.nearest(query, count) if large is None else large.nearest(query, count)

    def held_of(self, namespace: str, ids: Sequence[str]) -> dict[str, Codes]:
        with self._lock:
            large = self._large.get(namespace)
            return super().held_of(namespace, ids) if large is None else large.codes_of(ids)

    def catch_up(self, namespace: str) -> HeldVectors:
        """As `VectorIndex.catch_up`; of a large namespace what isn't in its shards yet."""
        with self._lock:
            if self._is_large(namespace):
                return self._catch_up_large(namespace)
            if (large := self._large.pop(namespace, None)) is not None:
                self._save_tail(namespace, large)
                large.clear()
            held = super().catch_up(namespace)
            queue = self._queue(namespace)
            until: float | None = None
            while queue and (until is None or time.perf_counter() < until):
                self._add(namespace, self._reader.made_of(namespace, [queue.popleft()]))
                until = until or time.perf_counter() + MADE_S  # the first may have had to load the encoder
            if queue:
                self.worker.wake()
            elif held.unsaved and self._reader.unsaved:
                self._save(namespace, held)
                self._reader.unsaved = 0
            return held

    def complete(self, namespace: str) -> None:
        """Makes every vector that is missing, however long that takes: for measurements."""
        self.catch_up(namespace)
        while self._piece() is not None:
            pass
        self.worker.wait(_LAST_PIECE_S)

    def drop(self, namespace: str | None = None, ids: "Sequence[str] | None" = None) -> None:  # type: ignore[override]
        with self._lock:
            chosen = None if ids is None else list(ids)
            for name in [namespace] if namespace is not None else list(self._large):
                if (large := self._large.get(name)) is None:
                    continue
                if chosen is None:
                    large.clear()
                    del self._large[name]
                else:
                    large.remove(chosen)
            super().drop(namespace, chosen)

    def close(self) -> None:
        self.worker.close()
        super().close()

    def _catch_up_large(self, namespace: str) -> HeldVectors:
        large = self._large.get(namespace)
        if large is None:
            if (held := self._held.get(namespace)) is not None and held.unsaved:
                self._save(namespace, held)
            super().drop(namespace)
            large = LargeVectors(self._bank, namespace, self.form, self._lists)
            self._large[namespace] = large
        large.refresh()
        epoch = self._bank.erase_epoch()
        if large.tail.epoch != epoch:
            kept = self._bank.records(namespace, list(large.tail.seen)) if large.tail.seen else []
            large.keep_alive({record.id for record in kept})
            large.tail.epoch = epoch
        if large.is_read and large.is_walked:
            large.walk(_SAVED)
            self._read_lacking(namespace, large)
        if not large.is_read or not large.is_walked or large.lacking or self._queue(namespace):
            self.worker.wake()
        return large.tail

    def _is_large(self, namespace: str) -> bool:
        if (large := self._large.get(namespace)) is not None and len(large) > SEARCHED_MEMORIES:
            return True
        epoch = self._bank.erase_epoch()
        if self._counted.get(namespace) == epoch:
            return True
        first, last = self._bank.ends(namespace)
        # Counting takes as long as the memories are many, so it is done where it is needed.
        if last - first < SEARCHED_MEMORIES or self._bank.count(namespace) <= SEARCHED_MEMORIES:
            return False
        self._counted[namespace] = epoch
        return True

    # -- beside the searches

    def _piece(self) -> bool | None:
        """The next of what is to be done, as `QuietWorker` asks for it."""
        for namespace in [*self._large, *self._to_make]:
            if (is_urgent := self._piece_of(namespace)) is not None:
                return is_urgent
        return None

    def _piece_of(self, namespace: str) -> bool | None:
        large = self._large.get(namespace)
        if large is not None:
            with self._lock:
                shard = large.next_shard()
            if shard is not None:
                entries = self._bank.vector_block(namespace, *shard)
                with self._lock:
                    if self._large.get(namespace) is large:
                        large.take(*shard, entries)
                return True
            with self._lock:
                if self._large.get(namespace) is large and self._has_room(large):
                    if not large.lacking and not large.is_walked:
                        large.walk()
                        return False if large.lacking or not large.is_walked else None
                    if large.lacking:
                        self._read_lacking(namespace, large)
                        return False
        return self._make_one(namespace)

    def _has_room(self, large: LargeVectors) -> bool:
        return len(large.tail) < SEARCHED_MEMORIES

    def _read_lacking(self, namespace: str, large: LargeVectors) -> None:
        """Vectors of the next memories that have none here, from their frames."""
        part = [large.lacking.popleft() for _ in range(min(_READ, len(large.lacking)))]
        if part:
            large.add(part, self._reader(namespace, part))
            self._save_when_many(namespace)

    def _make_one(self, namespace: str) -> bool | None:
        """A vector that is missing; the words are read and the vector made while others may search."""
        with self._lock:
            queue = self._queue(namespace)
            if not queue or self._bank.read_only:
                return None
            memory_id, epoch = queue.popleft(), self._bank.erase_epoch()
        vectors = self._reader.made_of(namespace, [memory_id])
        with self._lock:
            if self._bank.erase_epoch() != epoch:  # it may be the one that is gone
                queue.append(memory_id)
            else:
                self._add(namespace, vectors)
                self._save_when_many(namespace, is_last=not queue)
        return False

    def _add(self, namespace: str, vectors: Mapping[str, Codes]) -> None:
        if (large := self._large.get(namespace)) is not None:
            large.add(list(vectors), vectors)
        elif (held := self._held.get(namespace)) is not None:
            held.add(list(vectors), vectors)

    def _save_when_many(self, namespace: str, *, is_last: bool = False) -> None:
        if (large := self._large.get(namespace)) is not None:
            if len(large.tail.unsaved) >= _SAVED or (is_last and large.tail.unsaved):
                self._save_tail(namespace, large)
        elif (held := self._held.get(namespace)) is not None and (is_last or len(held.unsaved) >= _SAVED):
            self._save(namespace, held)

    def _save_tail(self, namespace: str, large: LargeVectors) -> None:
        self._save(namespace, large.tail)
        if not large.tail.unsaved:
            large.saved()

    def _queue(self, namespace: str) -> deque[str]:
        """Memories without vectors; what the reader came upon since is added."""
        queue = self._to_make.setdefault(namespace, deque())
        if found := self._reader.lacking.pop(namespace, None):
            known = set(queue)
            queue.extend(each for each in found if each not in known)
        return queue


class _Reader:
    """Vectors of memories from their frames, or of their words."""

    def __init__(self, store: Store, embedder: Embedder) -> None:
        self._store = store
        self._embedder = embedder
        self.made = 0
        self.unsaved = 0  # of those that were made
        self.lacking: dict[str, list[str]] = {}  # by namespace: memories whose frames hold none

    def __call__(self, namespace: str, ids: Sequence[str]) -> Mapping[str, Codes]:
        found: dict[str, Codes] = {}
        for memory_id, data in self._store.get_routes(namespace, ids).items():
            record = decode_route(data)
            if record.vectors is not None and record.form == self._embedder.form:
                found[memory_id] = record.vectors.numpy()
            else:
                self.lacking.setdefault(namespace, []).append(memory_id)
        return found

    def made_of(self, namespace: str, ids: Sequence[str]) -> dict[str, Codes]:
        """Vectors of those that are still there."""
        found: dict[str, Codes] = {}
        for record in self._store.records(namespace, ids):
            found[record.id] = self._embedder.memory(said_in(to_memory(record))).numpy()
            self.made += 1
            self.unsaved += 1
        return found
