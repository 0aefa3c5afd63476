"""The vectors of a large namespace: a mirror of its shards, block by block, each in lists about the same
centroids.

A block is read whole and let go of whole. Several that are read at once share their lists: searching many
short ones takes longer than what is in them. Lists are as long as what is in them, so that nothing is held
twice, and are made anew without a block that goes.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from mnemos.memory.vectors_held import Codes
from mnemos.store.ids import id_from_bytes

_ID_BYTES = 16
_PROBES = 40  # lists looked at
_PADDING = bytes(4)  # makes an id as long as whole groups of base32
_FILLING = "a" * 6  # which is that padding
_SIGN = 0x80  # what faiss adds to a signed code

Numbers = NDArray[np.int32]


def _keys(ids: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Half of each id `[ids, 16]`, which is random: enough to tell one from all others."""
    return np.ascontiguousarray(ids[:, :8]).view(np.uint64)[:, 0]


class Part:
    """The vectors of one shard, or of several."""

    def __init__(
        self, coarse: Any, ids: NDArray[np.uint8], codes: Codes, homes: Numbers, blocks: Numbers
    ) -> None:
        """`homes` says which list each vector `[vectors, dims]` goes to, `blocks` which shard it is of."""
        count, dims = codes.shape
        order = np.argsort(homes, kind="stable")
        self.ids = ids[order]  # [vectors, 16], as they lie in the lists
        self.blocks = blocks[order]
        keys = _keys(self.ids)
        self._places = np.argsort(keys).astype(np.int32)
        self._sorted = keys[self._places]
        self._homes = homes[order]
        kind, metric = faiss.ScalarQuantizer.QT_8bit_direct_signed, faiss.METRIC_INNER_PRODUCT
        self.index: Any = faiss.IndexIVFScalarQuantizer(coarse, dims, coarse.ntotal, kind, metric, False)
        self.index.own_fields = False
        self.index.is_trained = True
        stored = np.ascontiguousarray(codes[order].view(np.uint8) ^ _SIGN)
        places = np.arange(count, dtype=np.int64)
        bounds = [*np.flatnonzero(np.diff(self._homes, prepend=-1)).tolist(), count]
        lists: Any = self.index.invlists
        for at, end in pairwise(bounds):
            lists.add_entries(
                int(self._homes[at]), end - at, faiss.swig_ptr(places[at:end]), faiss.swig_ptr(stored[at:end])
            )
        self.index.ntotal = count
        stored.fill(0)
        # The lists never grow, so what they hold stays where it is.
        self._lists = {int(self._homes[at]): (at, self._list(int(self._homes[at]))) for at in bounds[:-1]}

    def __len__(self) -> int:
        return len(self.ids)

    def _list(self, home: int) -> NDArray[np.uint8]:
        """What a list holds, in place."""
        lists: Any = self.index.invlists
        held = faiss.rev_swig_ptr(lists.get_codes(home), lists.list_size(home) * lists.code_size)
        found: NDArray[np.uint8] = held.reshape(-1, lists.code_size)
        return found

    def first(self, keys: NDArray[np.uint64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Which of them are here, and where among the sorted."""
        at = np.searchsorted(self._sorted, keys)
        at[at == len(self)] = 0
        found: NDArray[np.bool_] = self._sorted[at] == keys
        return found, at

    def stored_at(self, first: int) -> list[NDArray[np.uint8]]:
        """The vectors of a memory as faiss has them, `[1, dims]` each, in place, by where it is among the
        sorted.
        """
        end = first + 1
        while end < len(self) and self._sorted[end] == self._sorted[first]:
            end += 1
        found = []
        for place in self._places[first:end].tolist():
            start, codes = self._lists[int(self._homes[place])]
            found.append(codes[place - start : place - start + 1])
        return found

    def blocks_with(self, keys: NDArray[np.uint64]) -> list[int]:
        found, at = self.first(keys)
        blocks: list[int] = np.unique(self.blocks[self._places[at[found]]]).tolist()
        return blocks

    def without(self, coarse: Any, blocks: Sequence[int]) -> "Part | None":
        """What is left of it; the caller overwrites this one."""
        left = np.flatnonzero(~np.isin(self.blocks, blocks))
        if not len(left):
            return None
        codes = np.concatenate([held for _, held in self._lists.values()])
        kept = (codes[left] ^ _SIGN).view(np.int8)
        codes.fill(0)
        made = Part(coarse, self.ids[left], kept, self._homes[left], self.blocks[left])
        kept.fill(0)
        return made

    def overwrite(self) -> None:
        for _, held in self._lists.values():
            held[:] = 0
        self.ids.fill(0)


class VectorBlocks:
    """Shards by number. What is let go of is overwritten."""

    def __init__(self, centroids: Codes) -> None:
        self._dims = centroids.shape[1]
        self._coarse: Any = faiss.IndexFlatIP(self._dims)
        self._coarse.add(centroids.astype(np.float32))
        self._parts: list[Part] = []
        self.names: dict[int, str] = {}  # of what was read of each block, those that held nothing too

    def __len__(self) -> int:
        """Vectors that are held."""
        return sum(map(len, self._parts))

    def put(self, block: int, name: str, entries: bytes) -> None:
        """What a shard holds: of each vector 16 bytes of memory id and its bytes."""
        self.hold({block: name}, self.part_of({block: entries}))

    def part_of(self, shards: Mapping[int, bytes]) -> "Part | None":
        """What shards hold, for `hold`: this takes long, and changes nothing here."""
        step = _ID_BYTES + self._dims
        raw = b"".join(shards.values())
        if not raw:
            return None
        rows = np.frombuffer(raw, dtype=np.uint8).reshape(-1, step)
        codes = np.ascontiguousarray(rows[:, _ID_BYTES:]).view(np.int8)
        homes = self._coarse.search(codes.astype(np.float32), 1)[1][:, 0].astype(np.int32)
        sizes = [len(entries) // step for entries in shards.values()]
        return Part(
            self._coarse,
            rows[:, :_ID_BYTES],
            codes,
            homes,
            np.repeat(np.array([*shards], dtype=np.int32), sizes),
        )

    def hold(self, names: Mapping[int, str], part: "Part | None") -> None:
        """Takes what was made of shards of those names in place of what these blocks held."""
        self.drop(names)
        self.names.update(names)
        if part is not None:
            self._parts.append(part)

    def drop(self, blocks: Iterable[int]) -> None:
        doomed = [block for block in list(blocks) if self.names.pop(block, None) is not None]
        if not doomed:
            return
        kept: list[Part] = []
        for part in self._parts:
            if not np.isin(doomed, part.blocks).any():
                kept.append(part)
                continue
            left = part.without(self._coarse, doomed)
            part.overwrite()
            kept += [] if left is None else [left]
        self._parts = kept

    def blocks_with(self, ids: Sequence[str]) -> list[int]:
        """Blocks that hold some of those memories."""
        keys = np.sort(_keys(_packed(ids)))
        return [block for part in self._parts for block in part.blocks_with(keys)]

    def without(self, ids: Sequence[str]) -> list[str]:
        """Those memories that have no vector here."""
        left = {at for at, found in enumerate(self._found(ids)) if found is None}
        return [each for at, each in enumerate(ids) if at in left]

    def gathered(self, ids: Sequence[str]) -> list[Codes | None]:
        """Each memory's vectors, as copies, where there are some."""
        places = self._found(ids)
        stored = [[] if place is None else place[0].stored_at(place[1]) for place in places]
        rows = [row for own in stored for row in own]
        if not rows:
            return [None] * len(ids)
        codes = (np.concatenate(rows) ^ _SIGN).view(np.int8)
        ends = np.cumsum([len(own) for own in stored]).tolist()
        return [codes[end - len(own) : end] if own else None for own, end in zip(stored, ends, strict=True)]

    def _found(self, ids: Sequence[str]) -> "list[tuple[Part, int] | None]":
        """Where each memory's vectors are."""
        found: list[tuple[Part, int] | None] = [None] * len(ids)
        keys = _keys(_packed(ids))
        left = np.argsort(keys)  # sorted keys are looked up faster
        for part in reversed(self._parts):  # the latest memories are those that are mostly asked for
            if not len(left):
                break
            here, at = part.first(keys[left])
            for index, place in zip(left[here].tolist(), at[here].tolist(), strict=True):
                found[index] = (part, place)
            left = left[~here]
        return found

    def nearest(self, query: Codes, count: int) -> list[tuple[float, str]]:
        """Products of the nearest vectors to a query's `[dims]` with it, and whose they are; best first."""
        if not self._parts:
            return []
        asked = query.astype(np.float32)[None]
        near = self._coarse.search(asked, min(_PROBES, self._coarse.ntotal))
        scores, places, owners = [], [], []
        for number, part in enumerate(self._parts):
            most = min(count, len(part))
            part.index.nprobe = near[1].shape[1]
            found, at = part.index.search_preassigned(asked, most, near[1], near[0])
            scores.append(found[0])
            places.append(at[0])
            owners.append(np.full(most, number))
        score, place, owner = (np.concatenate(each) for each in (scores, places, owners))
        score[place < 0] = -np.inf
        best = np.argsort(-score, kind="stable")[: min(count, int((place >= 0).sum()))]
        return [
            (float(score[at]), id_from_bytes(self._parts[owner[at]].ids[place[at]].tobytes())) for at in best
        ]


def _packed(ids: Sequence[str]) -> NDArray[np.uint8]:
    """Ids as bytes `[ids, 16]`."""
    # All at once: one by one takes longer than looking them up.
    raw = base64.b32decode("".join(each + _FILLING for each in ids).upper())
    return np.frombuffer(raw, dtype=np.uint8).reshape(-1, _ID_BYTES + len(_PADDING))[:, :_ID_BYTES]
