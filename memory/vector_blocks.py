"""The vectors of a large namespace: a mirror of its shards, block by block, each in lists about the same
centroids.

A block is read whole and let go of whole. Its lists are as long as what is in them, so that nothing is held
twice.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from mnemos.memory.vectors_held import Codes
from mnemos.store.ids import id_from_bytes, id_to_bytes

_ID_BYTES = 16
_PROBES = 40  # lists looked at
_SIGN = 0x80  # what faiss adds to a signed code


def _keys(ids: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Half of each id `[ids, 16]`, which is random: enough to tell one from all others."""
    return np.ascontiguousarray(ids[:, :8]).view(np.uint64)[:, 0]


class _Block:
    """The vectors of one shard."""

    def __init__(self, coarse: Any, ids: NDArray[np.uint8], codes: Codes) -> None:
        count, dims = codes.shape
        homes = coarse.search(codes.astype(np.float32), 1)[1][:, 0]
        order = np.argsort(homes, kind="stable")
        self.ids = ids[order]  # [vectors, 16], as they lie in the lists
        keys = _keys(self.ids)
        self._places = np.argsort(keys).astype(np.int32)
        self._sorted = keys[self._places]
        self._homes = homes[order].astype(np.int32)
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

    def __len__(self) -> int:
        return len(self.ids)

    def holds(self, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of them are here."""
        at = np.searchsorted(self._sorted, keys)
        at[at == len(self)] = 0
        found: NDArray[np.bool_] = self._sorted[at] == keys
        return found

    def codes_of(self, key: np.uint64) -> Codes:
        """The vectors `[vectors, dims]` of a memory that is here, as a copy."""
        first, end = (int(np.searchsorted(self._sorted, key, side)) for side in ("left", "right"))
        lists: Any = self.index.invlists
        found = []
        for place in self._places[first:end].tolist():
            home = int(self._homes[place])
            size = lists.list_size(home) * lists.code_size
            codes = faiss.rev_swig_ptr(lists.get_codes(home), size).reshape(-1, lists.code_size)
            found.append(codes[place - int(np.searchsorted(self._homes, home))] ^ _SIGN)
        return np.stack(found).view(np.int8)

    def overwrite(self) -> None:
        lists: Any = self.index.invlists
        for home in np.unique(self._homes).tolist():
            faiss.rev_swig_ptr(lists.get_codes(home), lists.list_size(home) * lists.code_size)[:] = 0
        self.ids.fill(0)


class VectorBlocks:
    """Blocks by number. What is let go of is overwritten."""

    def __init__(self, centroids: Codes) -> None:
        self._dims = centroids.shape[1]
        self._coarse: Any = faiss.IndexFlatIP(self._dims)
        self._coarse.add(centroids.astype(np.float32))
        self._blocks: dict[int, _Block] = {}
        self.names: dict[int, str] = {}  # of what was read of each block, those that held nothing too

    def __len__(self) -> int:
        """Vectors that are held."""
        return sum(map(len, self._blocks.values()))

    def put(self, block: int, name: str, entries: bytes) -> None:
        """What a shard holds: of each vector 16 bytes of memory id and its bytes."""
        self.drop([block])
        self.names[block] = name
        if entries:
            rows = np.frombuffer(entries, dtype=np.uint8).reshape(-1, _ID_BYTES + self._dims)
            codes = np.ascontiguousarray(rows[:, _ID_BYTES:]).view(np.int8)
            self._blocks[block] = _Block(self._coarse, rows[:, :_ID_BYTES], codes)

    def drop(self, blocks: Iterable[int]) -> None:
        for block in list(blocks):
            self.names.pop(block, None)
            if (held := self._blocks.pop(block, None)) is not None:
                held.overwrite()

    def blocks_with(self, ids: Sequence[str]) -> list[int]:
        """Blocks that hold some of those memories."""
        keys = _keys(_packed(ids))
        return [number for number, block in self._blocks.items() if block.holds(keys).any()]

    def without(self, ids: Sequence[str]) -> list[str]:
        """Those memories that have no vector here."""
        keys = _keys(_packed(ids))
        held = np.zeros(len(ids), dtype=bool)
        for block in self._blocks.values():
            held |= block.holds(keys)
        return [each for each, here in zip(ids, held.tolist(), strict=True) if not here]

    def codes_of(self, ids: Sequence[str]) -> dict[str, Codes]:
        """Memories' vectors, as copies, of those that have some here."""
        keys = _keys(_packed(ids))
        found: dict[str, Codes] = {}
        for block in self._blocks.values():
            for at in np.flatnonzero(block.holds(keys)).tolist():
                found[ids[at]] = block.codes_of(keys[at])
        return found

    def nearest(self, query: Codes, count: int) -> list[tuple[float, str]]:
        """Products of the nearest vectors to a query's `[dims]` with it, and whose they are; best first."""
        blocks = list(self._blocks.values())
        if not blocks:
            return []
        asked = query.astype(np.float32)[None]
        near = self._coarse.search(asked, min(_PROBES, self._coarse.ntotal))
        scores, places, owners = [], [], []
        for number, block in enumerate(blocks):
            most = min(count, len(block))
            block.index.nprobe = near[1].shape[1]
            found, at = block.index.search_preassigned(asked, most, near[1], near[0])
            scores.append(found[0])
            places.append(at[0])
            owners.append(np.full(most, number))
        score, place, owner = (np.concatenate(each) for each in (scores, places, owners))
        score[place < 0] = -np.inf
        best = np.argsort(-score, kind="stable")[: min(count, int((place >= 0).sum()))]
        return [(float(score[at]), id_from_bytes(blocks[owner[at]].ids[place[at]].tobytes())) for at in best]


def _packed(ids: Sequence[str]) -> NDArray[np.uint8]:
    """Ids as bytes `[ids, 16]`."""
    raw = b"".join(map(id_to_bytes, ids))
    return np.frombuffer(raw, dtype=np.uint8).reshape(-1, _ID_BYTES)
