"""Vectors that a sentence encoder makes of memories' words, as an index to search.

They lie beside the token keys in route frames. A memory whose trace was made before there was an encoder gets
its vectors once its namespace is searched, a few at a time; those are kept in the shards. The shards of a
namespace too large to be read in a search's way are read beside the searches, which find nothing by vectors
until that is done.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock

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
READ_S = 1.0  # of a search, to read vectors from frames where they aren't in shards yet
MADE_S = 0.05  # of the first search of a namespace, to make vectors that are missing
_PIECE_S = 0.1  # of making vectors beside the searches, which ends it
_MADE = 16  # memories whose words are read at once for that
_SAVED = 256  # memories that are kept at once, of those whose vectors were made
_SAVED_READ = 2048  # of those whose vectors were read from frames: a shard is written anew each time
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

    @contextmanager
    def searching(self) -> Iterator[None]:
        with self.worker.searching():
            yield

    def wait(self, seconds: float) -> None:
        self.worker.wait(seconds)

    def nearest(self, namespace: str, query: Codes, count: int) -> dict[str, float]:
        """As `VectorIndex.nearest`; nothing while a large namespace is being read."""
        with self.worker.searching(), self._lock:
            held = self.catch_up(namespace)
            large = self._large.get(namespace)
            return held.nearest(query, count) if large is None else large.nearest(query, count)

    def held_of(self, namespace: str, ids: Sequence[str]) -> list[Codes | None]:
        with self._lock:
            large = self._large.get(namespace)
            return super().held_of(namespace, ids) if large is None else large.gathered(ids)

    def catch_up(self, namespace: str, most_s: float | None = None) -> HeldVectors:
        """As `VectorIndex.catch_up`; of a large namespace what isn't in its shards yet."""
        with self._lock:
            if self._is_large(namespace):
                return self._catch_up_large(namespace)
            if (large := self._large.pop(namespace, None)) is not None:
                self._save_tail(namespace, large)
                large.clear()
            is_first = namespace not in self._held
            held = super().catch_up(namespace, READ_S if most_s is None else most_s)
            queue = self._queue(namespace)
            until: float | None = None
            # Whoever searches once and ends makes some too; later searches leave it to the thread.
            while is_first and queue and (until is None or time.perf_counter() < until):
                self._add(namespace, self._reader.made_of(namespace, [queue.popleft()]))
                until = until or time.perf_counter() + MADE_S  # the first may have had to load the encoder
            if queue or held.waiting:
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
            if len(large.lacking) <= _READ:  # what is new; a whole bank is read beside the searches
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
                wanted = large.next_shards()
            if wanted:
                read = large.read(wanted, self.worker.give_way)
                with self._lock:
                    if self._large.get(namespace) is large:
                        large.take(read)
                return True
            if self._has_room(large):
                if large.lacking:
                    self._read_lacking_beside(namespace, large)
                    return False
                if not large.is_walked:
                    return False if self._walk_beside(namespace, large) else None
        with self._lock:
            held = self._held.get(namespace)
            if large is None and held is not None and held.waiting:
                super().catch_up(namespace, _PIECE_S / 4)
                return True
        return self._make(namespace)

    def _has_room(self, large: LargeVectors) -> bool:
        return len(large.tail) < SEARCHED_MEMORIES

    def _walk_beside(self, namespace: str, large: LargeVectors) -> bool:
        """Looks through a part of the catalog while others may search; whether there is more to do."""
        epoch = self._bank.erase_epoch()
        routes = large.read_routes()
        with self._lock:
            if self._large.get(namespace) is large and self._bank.erase_epoch() == epoch:
                large.walked(routes)
            return bool(large.lacking) or not large.is_walked

    def _read_lacking_beside(self, namespace: str, large: LargeVectors) -> None:
        """As `_read_lacking`, while others may search."""
        with self._lock:
            epoch = self._bank.erase_epoch()
            part = [large.lacking.popleft() for _ in range(min(_READ, len(large.lacking)))]
        vectors = self._reader(namespace, part)
        with self._lock:
            if self._large.get(namespace) is not large:
                return
            if self._bank.erase_epoch() != epoch:  # it may be one of them that is gone
                large.lacking.extendleft(record.id for record in self._bank.records(namespace, part))
                return
            large.add(part, vectors)
            is_last = large.is_walked and not large.lacking
        self._save_when_many(namespace, _SAVED_READ, is_last=is_last)

    def _read_lacking(self, namespace: str, large: LargeVectors) -> None:
        """Vectors of the next memories that have none here, from their frames."""
        part = [large.lacking.popleft() for _ in range(min(_READ, len(large.lacking)))]
        if part:
            large.add(part, self._reader(namespace, part))
            self._save_when_many(namespace, _SAVED_READ)

    def _make(self, namespace: str) -> bool | None:
        """Vectors that are missing, until it has taken long or somebody searches; the words are read and the
        vectors made while others may search.
        """
        with self._lock:
            queue = self._queue(namespace)
            if not queue or self._bank.read_only:
                return None
            ids = [queue.popleft() for _ in range(min(_MADE, len(queue)))]
            epoch = self._bank.erase_epoch()
        until = time.monotonic() + _PIECE_S
        vectors, left = self._reader.made_until(
            namespace, ids, lambda: time.monotonic() > until or not self.worker.is_quiet
        )
        with self._lock:
            if self._bank.erase_epoch() != epoch:  # it may be one of them that is gone
                queue.extend(ids)
                return False
            queue.extendleft(reversed(left))
            self._add(namespace, vectors)
        self._save_when_many(namespace, _SAVED, is_last=not queue)
        return False

    def _add(self, namespace: str, vectors: Mapping[str, Codes]) -> None:
        if (large := self._large.get(namespace)) is not None:
            large.add(list(vectors), vectors)
        elif (held := self._held.get(namespace)) is not None:
            held.add(list(vectors), vectors)

    def _save_when_many(self, namespace: str, many: int, *, is_last: bool = False) -> None:
        """Keeps vectors in shards, while others may search: the disk takes long."""
        with self._lock:
            large = self._large.get(namespace)
            held = self._held.get(namespace) if large is None else large.tail
            if held is None or not held.unsaved or (len(held.unsaved) < many and not is_last):
                return
            taken = set(held.unsaved)
            vectors = held.vectors_of(taken)
            held.unsaved.clear()
        is_kept = self._put(namespace, vectors)
        with self._lock:
            if not is_kept:
                held.unsaved |= taken & held.owners
            elif large is not None and self._large.get(namespace) is large:
                large.saved(taken)

    def _save_tail(self, namespace: str, large: LargeVectors) -> None:
        taken = set(large.tail.unsaved)
        self._save(namespace, large.tail)
        if not large.tail.unsaved:
            large.saved(taken)

    def _queue(self, namespace: str) -> deque[str]:
        """Memories without vectors; what the reader came upon since is added."""
        queue = self._to_make.setdefault(namespace, deque())
        if found := self._reader.lacking_of(namespace):
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
        self._guard = Lock()
        self._lacking: dict[str, list[str]] = {}  # by namespace: memories whose frames hold none

    def __call__(self, namespace: str, ids: Sequence[str]) -> Mapping[str, Codes]:
        found: dict[str, Codes] = {}
        lacking: list[str] = []
        for memory_id, data in self._store.get_routes(namespace, ids).items():
            record = decode_route(data)
            if record.vectors is not None and record.form == self._embedder.form:
                found[memory_id] = record.vectors.numpy()
            else:
                lacking.append(memory_id)
        if lacking:
            with self._guard:
                self._lacking.setdefault(namespace, []).extend(lacking)
        return found

    def lacking_of(self, namespace: str) -> list[str]:
        """What it came upon since this was asked last."""
        with self._guard:
            return self._lacking.pop(namespace, [])

    def made_of(self, namespace: str, ids: Sequence[str]) -> dict[str, Codes]:
        """Vectors of those that are still there."""
        return self.made_until(namespace, ids, lambda: False)[0]

    def made_until(
        self, namespace: str, ids: Sequence[str], is_over: Callable[[], bool]
    ) -> tuple[dict[str, Codes], list[str]]:
        """As `made_of`, of one at least; and those that are left."""
        found: dict[str, Codes] = {}
        records = self._store.records(namespace, ids)
        for at, record in enumerate(records):
            if found and is_over():
                return found, [each.id for each in records[at:]]
            found[record.id] = self._embedder.memory(said_in(to_memory(record))).numpy()
            self.made += 1
            self.unsaved += 1
        return found, []
