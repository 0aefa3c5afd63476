"""The vectors of one large namespace: its shards, and what isn't in them yet.

Everything but `nearest` is bounded: whoever calls does one piece after another.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from mnemos.memory.vector_blocks import VectorBlocks
from mnemos.memory.vectors_held import Codes, HeldVectors

WALKED = 2048  # rows of the catalog looked through at once
_AT_ONCE = 4  # shards read in a search's way: those that an erase or a write put in place of others


class BlockStore(Protocol):
    """What of a `Store` this needs."""

    def new_routes(
        self, namespace: str, after: int = 0, most: int | None = None
    ) -> tuple[int, list[str]]: ...
    def vector_blocks(self, namespace: str, form: str, stride: int) -> dict[int, str]: ...
    def vector_block(self, namespace: str, block: int, name: str) -> bytes | None: ...


class LargeVectors:
    """A mirror of the shards of `namespace`, with the latest memories beside it."""

    def __init__(self, store: BlockStore, namespace: str, form: str, centroids: Codes) -> None:
        self._store, self._namespace, self._form = store, namespace, form
        self._dims = centroids.shape[1]
        self.blocks = VectorBlocks(centroids)
        self.tail = HeldVectors(np.zeros((1, self._dims), dtype=np.int8))
        self.lacking: deque[str] = deque()  # without a vector here, of what was walked through
        self._mark = 0
        self.is_walked = False
        self.is_read = False  # every shard

    def __len__(self) -> int:
        """Vectors that are held."""
        return len(self.blocks) + len(self.tail)

    def refresh(self) -> None:
        """Lets go of shards that were replaced, and reads what came in their place unless it is much."""
        wanted = self._wanted()
        gone = self.blocks.names.keys() - wanted.keys()
        self.blocks.drop([number for number, name in self.blocks.names.items() if wanted.get(number) != name])
        if gone:
            self._walk_again()
        missing = self._missing(wanted)
        if self.is_read and len(missing) <= _AT_ONCE:
            for number in missing:
                self._put(
                    number, wanted[number], self._store.vector_block(self._namespace, number, wanted[number])
                )
        self.is_read = not self._missing(wanted)

    def next_shard(self) -> tuple[int, str] | None:
        """One that is still to be read: `(block, name)`."""
        wanted = self._wanted()
        missing = self._missing(wanted)
        self.is_read = not missing
        return (missing[0], wanted[missing[0]]) if missing else None

    def take(self, block: int, name: str, entries: bytes | None) -> None:
        """A shard as it was read, unless another has taken its place since."""
        if self._wanted().get(block) == name:
            self._put(block, name, entries)

    def walk(self, most: int = WALKED) -> list[str]:
        """Looks through more of the catalog for memories that have no vector here: adds them to `lacking`."""
        before = self._mark
        self._mark, found = self._store.new_routes(self._namespace, before, most)
        if self._mark < before:  # the catalog was made anew
            self._walk_again()
            return []
        self.is_walked = len(found) < most
        fresh = [each for each in self.blocks.without(found) if each not in self.tail.seen] if found else []
        self.lacking += fresh
        return fresh

    def add(self, ids: Sequence[str], vectors: Mapping[str, Codes]) -> None:
        self.tail.add(ids, vectors)

    def saved(self) -> None:
        """What was beside the shards is in them now."""
        self.tail.remove(self.tail.seen)
        self.refresh()

    def remove(self, ids: Iterable[str]) -> None:
        """Overwrites what is held of memories; blocks that held one are to be read again."""
        gone = list(ids)
        self.tail.remove(gone)
        if gone:
            self.blocks.drop(self.blocks.blocks_with(gone))
        doomed = set(gone)
        self.lacking = deque(each for each in self.lacking if each not in doomed)

    def keep_alive(self, alive: set[str]) -> None:
        """Lets go of those beside the shards that aren't among these."""
        self.tail.remove(self.tail.seen - alive)

    def clear(self) -> None:
        self.tail.remove(self.tail.seen)
        self.blocks.drop(list(self.blocks.names))
        self.lacking.clear()

    def codes_of(self, ids: Sequence[str]) -> dict[str, Codes]:
        """Memories' vectors, as copies."""
        return {**self.blocks.codes_of(ids), **self.tail.codes_of(ids)} if ids else {}

    def nearest(self, query: Codes, count: int) -> dict[str, float]:
        """As `HeldVectors.nearest`; nothing until all shards were read."""
        if not self.is_read:
            return {}
        best: dict[str, float] = dict(self.tail.nearest(query, count + 1))
        known = self.tail.codes_of(self.tail.seen)
        for score, memory_id in self.blocks.nearest(query, count + 1 + len(known)):
            if memory_id not in known:
                best[memory_id] = max(score, best.get(memory_id, score))
        order = sorted(best.items(), key=lambda each: -each[1])
        if len(order) <= count:
            return dict(order)
        return {memory_id: score for memory_id, score in order[:count] if score > order[count][1]}

    def _put(self, block: int, name: str, entries: bytes | None) -> None:
        self.blocks.put(block, name, entries or b"")
        if entries is None:
            self._walk_again()

    def _walk_again(self) -> None:
        self._mark, self.is_walked = 0, False
        self.lacking.clear()

    def _wanted(self) -> dict[int, str]:
        return self._store.vector_blocks(self._namespace, self._form, self._dims)

    def _missing(self, wanted: Mapping[int, str]) -> list[int]:
        return [number for number, name in wanted.items() if self.blocks.names.get(number) != name]
