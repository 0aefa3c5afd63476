"""The vectors of one large namespace: its shards, and what isn't in them yet.

Everything but `nearest` is bounded: whoever calls does one piece after another.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mnemos.memory.vector_blocks import Part, VectorBlocks
from mnemos.memory.vectors_held import Codes, HeldVectors

WALKED = 512  # rows of the catalog looked through at once
TOGETHER = 8  # shards that share their lists, read one after another beside the searches
_AT_ONCE = 4  # shards read in a search's way: those that an erase or a write put in place of others


class BlockStore(Protocol):
    """What of a `Store` this needs."""

    def new_routes(
        self, namespace: str, after: int = 0, most: int | None = None
    ) -> tuple[int, list[str]]: ...
    def vector_blocks(self, namespace: str, form: str, stride: int) -> dict[int, str]: ...
    def vector_block(self, namespace: str, block: int, name: str) -> bytes | None: ...


@dataclass(frozen=True, slots=True)
class ReadShards:
    """Shards by block: their names, what each holds, None where that can't be read, and lists of it."""

    names: Mapping[int, str]
    entries: Mapping[int, bytes | None]
    part: Part | None


@dataclass(frozen=True, slots=True)
class ReadRoutes:
    """Memories with a routing record, from one mark of the catalog to another."""

    before: int
    mark: int
    ids: Sequence[str]
    is_last: bool


def _keep_on() -> None:
    """Gives way to nobody."""


def _there(entries: Mapping[int, bytes | None]) -> dict[int, bytes]:
    return {block: held for block, held in entries.items() if held}


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
        if self.is_read and 0 < len(missing) <= _AT_ONCE:
            self.take(self.read({number: wanted[number] for number in missing}))
        self.is_read = not self._missing(wanted)

    def next_shards(self, most: int = TOGETHER) -> dict[int, str]:
        """Some that are still to be read, by their blocks."""
        wanted = self._wanted()
        missing = self._missing(wanted)
        self.is_read = not missing
        return {block: wanted[block] for block in missing[:most]}

    def read(self, names: Mapping[int, str], give_way: Callable[[], None] = _keep_on) -> ReadShards:
        """Shards for `take`: this takes long, gives way before each, and changes nothing here."""
        entries: dict[int, bytes | None] = {}
        for block, name in names.items():
            give_way()
            entries[block] = self._store.vector_block(self._namespace, block, name)
        give_way()
        return ReadShards(names, entries, self.blocks.part_of(_there(entries)))

    def take(self, shards: ReadShards) -> None:
        """Shards as they were read, but for those that others have taken the place of since."""
        wanted = self._wanted()
        valid = {block: name for block, name in shards.names.items() if wanted.get(block) == name}
        part = shards.part
        if len(valid) < len(shards.names):
            if part is not None:
                part.overwrite()
            part = self.blocks.part_of(_there({block: shards.entries[block] for block in valid}))
        self.blocks.hold(valid, part)
        if any(shards.entries[block] is None for block in valid):
            self._walk_again()

    def walk(self, most: int = WALKED) -> list[str]:
        """Looks through more of the catalog for memories that have no vector here: adds them to `lacking`."""
        return self.walked(self.read_routes(most))

    def read_routes(self, most: int = WALKED) -> ReadRoutes:
        """The next part of the catalog, for `walked`: this takes long, and changes nothing here."""
        before = self._mark
        mark, found = self._store.new_routes(self._namespace, before, most)
        return ReadRoutes(before, mark, found, len(found) < most)

    def walked(self, routes: ReadRoutes) -> list[str]:
        """As `walk`, of what was read; nothing when others have begun again or gone on since."""
        if routes.before != self._mark:
            return []
        if routes.mark < routes.before:  # the catalog was made anew
            self._walk_again()
            return []
        self._mark, self.is_walked = routes.mark, routes.is_last
        ids = routes.ids
        fresh = [each for each in self.blocks.without(ids) if each not in self.tail.seen] if ids else []
        self.lacking += fresh
        return fresh

    def add(self, ids: Sequence[str], vectors: Mapping[str, Codes]) -> None:
        self.tail.add(ids, vectors)

    def saved(self, ids: Iterable[str]) -> None:
        """These, which were beside the shards, are in them now."""
        self.tail.remove(set(ids) - self.tail.unsaved)
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

    def gathered(self, ids: Sequence[str]) -> list[Codes | None]:
        """Each memory's vectors, as copies, where there are some."""
        found = self.tail.gathered(ids)
        lacking = [at for at, codes in enumerate(found) if codes is None]
        for at, codes in zip(lacking, self.blocks.gathered([ids[at] for at in lacking]), strict=True):
            found[at] = codes
        return found

    def nearest(self, query: Codes, count: int) -> dict[str, float]:
        """As `HeldVectors.nearest`; nothing until all shards were read."""
        if not self.is_read:
            return {}
        best: dict[str, float] = dict(self.tail.nearest(query, count + 1))
        known = self.tail.owners
        for score, memory_id in self.blocks.nearest(query, count + 1 + len(known)):
            if memory_id not in known:
                best[memory_id] = max(score, best.get(memory_id, score))
        order = sorted(best.items(), key=lambda each: -each[1])
        if len(order) <= count:
            return dict(order)
        return {memory_id: score for memory_id, score in order[:count] if score > order[count][1]}

    def _walk_again(self) -> None:
        self._mark, self.is_walked = 0, False
        self.lacking.clear()

    def _wanted(self) -> dict[int, str]:
        return self._store.vector_blocks(self._namespace, self._form, self._dims)

    def _missing(self, wanted: Mapping[int, str]) -> list[int]:
        return [number for number, name in wanted.items() if self.blocks.names.get(number) != name]
