"""Vectors of a trained router: which memories of a namespace lie nearest to a query's.

What is held here is a cache of the shards in the bank, and those are one of the route frames: whatever is
missing is read from the frames, and kept in shards when enough of it has come together.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from threading import RLock
from typing import Protocol

import numpy as np

from mnemos.attention.memory_codec import decode_route
from mnemos.attention.projection import Projection
from mnemos.errors import BankFullError, BankLockedError, NotFoundError
from mnemos.memory.vectors_held import Codes, HeldVectors
from mnemos.store.shards import Shard
from mnemos.store.store import Store

_SAVE_MEMORIES = 256  # new ones that make up a write of their shards
_READ_MEMORIES = 256  # whose frames are read at once
_READ_IN_TIME = 64  # likewise where there is only so much time


class VectorStore(Protocol):
    """What of a `Store` this needs."""

    @property
    def read_only(self) -> bool: ...
    def erase_epoch(self) -> int: ...
    def new_routes(self, namespace: str, after: int = 0) -> tuple[int, list[str]]: ...
    def put_vectors(self, namespace: str, form: str, stride: int, vectors: Mapping[str, bytes]) -> int: ...
    def vector_shards(self, namespace: str, form: str, stride: int) -> Iterable[Shard]: ...


class VectorReader(Protocol):
    """Vectors of those memories that have some of this form, from their frames."""

    def __call__(self, namespace: str, ids: Sequence[str]) -> Mapping[str, Codes]: ...


class VectorIndex:
    """The vectors of the namespaces that were searched, by one model; kept up with the bank at every
    search.
    """

    def __init__(self, store: VectorStore, read: VectorReader, form: str, centroids: Codes) -> None:
        self._store = store
        self._read = read
        self.form = form
        self._centroids = centroids
        self._held: dict[str, HeldVectors] = {}
        self._lock = RLock()

    def searching(self) -> AbstractContextManager[None]:
        """For as long as a search takes: what goes on beside it leaves it alone."""
        return nullcontext()

    def wait(self, seconds: float) -> None:
        """Until nothing goes on beside the searches, or for so long."""

    def nearest(self, namespace: str, query: Codes, count: int) -> dict[str, float]:
        """As `HeldVectors.nearest`, of what the bank holds now."""
        with self._lock:
            return self.catch_up(namespace).nearest(query, count)

    def held_of(self, namespace: str, ids: Sequence[str]) -> list[Codes | None]:
        """Each memory's vectors as far as they are held."""
        with self._lock:
            held = self._held.get(namespace)
            return [None] * len(ids) if held is None else held.gathered(ids)

    def catch_up(self, namespace: str, most_s: float | None = None) -> HeldVectors:
        """What the bank holds of a namespace now; what is new is read, and kept in shards when it is much.
        What can't be read in `most_s` waits for the next time.
        """
        with self._lock:
            held = self._held.get(namespace)
            epoch = self._store.erase_epoch()
            after = held.mark if held is not None else 0
            mark, fresh = self._store.new_routes(namespace, after)
            if held is None or held.epoch != epoch or mark < after:
                mark, every = self._store.new_routes(namespace)
                held = self._held[namespace] = self._resynced(namespace, held, every)
                behind = set(fresh) if mark >= after and after else set()
                fresh = [each for each in every if each in behind or each not in held.seen]
                held.waiting.clear()
            held.waiting += fresh
            held.mark, held.epoch = mark, epoch
            started = time.perf_counter()
            most = _READ_MEMORIES if most_s is None else _READ_IN_TIME
            while held.waiting and (most_s is None or time.perf_counter() < started + most_s):
                part = [held.waiting.popleft() for _ in range(min(most, len(held.waiting)))]
                held.add(part, self._read(namespace, part))
            if len(held.unsaved) >= _SAVE_MEMORIES and not held.waiting:
                self._save(namespace, held)
            return held

    def save(self, namespace: str) -> None:
        """Keeps in shards what isn't there yet, where the bank can be written."""
        with self._lock:
            held = self.catch_up(namespace)
            if held.unsaved:
                self._save(namespace, held)

    def close(self) -> None:
        """Overwrite and let go of everything."""
        self.drop()

    def drop(self, namespace: str | None = None, ids: Iterable[str] | None = None) -> None:
        """Overwrite and let go of memories, of a namespace, or of everything."""
        with self._lock:
            for name in [namespace] if namespace is not None else list(self._held):
                held = self._held.get(name)
                if held is None:
                    continue
                held.remove(held.seen if ids is None else ids)
                if ids is None:
                    del self._held[name]

    def _resynced(self, namespace: str, held: HeldVectors | None, every: Sequence[str]) -> HeldVectors:
        """What is held, without what is gone; from the shards when nothing is held yet."""
        alive = set(every)
        if held is not None:
            held.remove(held.seen - alive)
            return held
        held = HeldVectors(self._centroids)
        dims = self._centroids.shape[1]
        for shard in self._store.vector_shards(namespace, self.form, dims):
            codes = np.frombuffer(shard.vectors, dtype=np.int8).reshape(-1, dims)
            rows: dict[str, list[int]] = {}
            for row, memory_id in enumerate(shard.ids):
                if memory_id in alive:
                    rows.setdefault(memory_id, []).append(row)
            held.add(list(rows), {memory_id: codes[own] for memory_id, own in rows.items()})
        held.unsaved.clear()
        return held

    def _save(self, namespace: str, held: HeldVectors) -> None:
        if not self._store.read_only and self._put(namespace, held.vectors_of(held.unsaved)):
            held.unsaved.clear()

    def _put(self, namespace: str, vectors: Mapping[str, bytes]) -> bool:
        """Keeps vectors in shards; whether that could be done."""
        # A writer in the way, a full disk, or the namespace gone: the frames still have it all.
        with suppress(BankLockedError, BankFullError, NotFoundError):
            self._store.put_vectors(namespace, self.form, self._centroids.shape[1], vectors)
            return True
        return False


def index_of(store: Store, projection: Projection) -> VectorIndex:
    """The index of a bank's vectors by one projection."""

    def read(namespace: str, ids: Sequence[str]) -> Mapping[str, Codes]:
        records = {each: decode_route(data) for each, data in store.get_routes(namespace, ids).items()}
        return {
            memory_id: record.vectors.numpy()
            for memory_id, record in records.items()
            if record.vectors is not None and record.form == projection.form
        }

    return VectorIndex(store, read, projection.form, projection.centroids.numpy())
