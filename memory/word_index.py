"""Vectors that a sentence encoder makes of memories' words, as an index to search.

They lie beside the token keys in route frames. A memory whose trace was made before there was an encoder gets
its vectors when its namespace is first searched; those are kept in the shards.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from mnemos.attention.embedder import Embedder
from mnemos.attention.memory_codec import decode_route
from mnemos.memory.convert import to_memory
from mnemos.memory.layout import said_in
from mnemos.memory.vector_index import VectorIndex
from mnemos.memory.vectors_held import Codes, HeldVectors
from mnemos.store.store import Store

SEARCHED_MEMORIES = 50_000  # reading the vectors of a larger namespace would take seconds


class WordIndex(VectorIndex):
    """As `VectorIndex`. A namespace too large to be searched by its vectors holds none here: there they are
    a signal of what was found otherwise.
    """

    def __init__(self, store: Store, embedder: Embedder) -> None:
        self._reader = _Reader(store, embedder)
        self._bank = store
        self._dims = embedder.dims
        self._large: dict[str, int] = {}  # namespaces found to be too large, at which erase epoch
        # One list: what is searched stays flat.
        super().__init__(store, self._reader, embedder.form, np.zeros((1, embedder.dims), dtype=np.int8))

    def catch_up(self, namespace: str) -> HeldVectors:
        """As `VectorIndex.catch_up`; vectors that had to be made are kept at once."""
        with self._lock:
            if self._is_large(namespace):
                self.drop(namespace)
                return HeldVectors(self._centroids)
            made = self._reader.made
            held = super().catch_up(namespace)
            if self._reader.made > made and held.unsaved:
                self._save(namespace, held)
            return held

    def _is_large(self, namespace: str) -> bool:
        epoch = self._bank.erase_epoch()
        if self._large.get(namespace) == epoch:
            return True
        first, last = self._bank.ends(namespace)
        # Counting takes as long as the memories are many, so it is done where it is needed.
        if last - first < SEARCHED_MEMORIES or self._bank.count(namespace) <= SEARCHED_MEMORIES:
            return False
        self._large[namespace] = epoch
        return True


class _Reader:
    """Vectors of memories from their frames, and from their words where the frames hold none."""

    def __init__(self, store: Store, embedder: Embedder) -> None:
        self._store = store
        self._embedder = embedder
        self.made = 0

    def __call__(self, namespace: str, ids: Sequence[str]) -> Mapping[str, Codes]:
        records = {each: decode_route(data) for each, data in self._store.get_routes(namespace, ids).items()}
        found = {
            memory_id: record.vectors.numpy()
            for memory_id, record in records.items()
            if record.vectors is not None and record.form == self._embedder.form
        }
        lacking = [each for each in records if each not in found]
        for record in self._store.records(namespace, lacking):
            found[record.id] = self._embedder.memory(said_in(to_memory(record))).numpy()
            self.made += 1
        return found
