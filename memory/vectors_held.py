"""The vectors of one namespace in faiss, and whose they are.

Flat and exact while they are few; above `FLAT_VECTORS` in lists about centroids that came with the router.
Those
are constants of the model, made from public text: a list remembers nothing of what was erased, and which of
the
two forms is used depends on what is there now and on nothing that was there before. Codes go in as they are:
nothing is trained on them.
"""

from collections import deque
from collections.abc import Iterable, KeysView, Mapping, Sequence
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

FLAT_VECTORS = 50_000
_PROBES = 24  # lists looked at
_FIRST_ROWS = 256
_ADDED = 1 << 16  # vectors given to faiss at once, in fp32
_CROWDED = 4  # times as many vectors as memories are asked for: the best memories may have several

Codes = NDArray[np.int8]  # [vectors, dims]


class HeldVectors:
    """Vectors by memory, the nearest of which can be asked for. What is removed is overwritten."""

    def __init__(self, centroids: Codes) -> None:
        self._centroids = centroids
        self._dims = centroids.shape[1]
        self._codes: Codes = np.zeros((_FIRST_ROWS, self._dims), dtype=np.int8)
        self._owners: list[str | None] = []  # of each row; None where it is free
        self._rows: dict[str, list[int]] = {}
        self._free: list[int] = []
        self._index: Any = None
        self.seen: set[str] = set()  # memories that were read, those without vectors too
        self.unsaved: set[str] = set()
        self.waiting: deque[str] = deque()  # memories that are still to be read
        self.mark = 0
        self.epoch = -1

    def __len__(self) -> int:
        """Vectors that are held."""
        return len(self._owners) - len(self._free)

    @property
    def owners(self) -> KeysView[str]:
        """Memories that have vectors here."""
        return self._rows.keys()

    def add(self, ids: Sequence[str], vectors: Mapping[str, Codes]) -> None:
        """Memories that were read, and the vectors of those that have some; in place of what they had."""
        self.remove([each for each in ids if each in self._rows])
        self.seen.update(ids)
        fresh: list[int] = []
        for memory_id, codes in vectors.items():
            rows = [self._row() for _ in codes]
            for row in rows:
                self._owners[row] = memory_id
            self._codes[rows] = codes
            self._rows[memory_id] = rows
            self.unsaved.add(memory_id)
            fresh += rows
        if self._index is not None and fresh:
            self._put(fresh)

    def remove(self, ids: Iterable[str]) -> None:
        """Overwrites the vectors of memories and lets go of them."""
        rows: list[int] = []
        for memory_id in list(ids):
            self.seen.discard(memory_id)
            self.unsaved.discard(memory_id)
            rows += self._rows.pop(memory_id, [])
        if not rows:
            return
        if isinstance(self._index, faiss.IndexIVF):
            self._take_out(rows)
        else:
            self._let_go()
        self._codes[rows] = 0
        for row in rows:
            self._owners[row] = None
        self._free += rows

    def vectors_of(self, ids: Iterable[str]) -> dict[str, bytes]:
        """The bytes of memories' vectors."""
        return {each: self._codes[self._rows[each]].tobytes() for each in ids if each in self._rows}

    def gathered(self, ids: Sequence[str]) -> list[Codes | None]:
        """Each memory's vectors `[vectors, dims]`, as copies, where there are some."""
        rows = [self._rows.get(each) for each in ids]
        codes = self._codes[[row for own in rows if own is not None for row in own]]
        ends = np.cumsum([0 if own is None else len(own) for own in rows]).tolist()
        return [
            None if own is None else codes[end - len(own) : end] for own, end in zip(rows, ends, strict=True)
        ]

    def nearest(self, query: Codes, count: int) -> dict[str, float]:
        """The memories with the nearest vectors to a query's `[dims]`, and their products.

        More than `count` where the last are equal, and none of those that are equal to what was left out:
        which ones these are doesn't depend on the order in which they came.
        """
        if not len(self):
            return {}
        if self._index is None or isinstance(self._index, faiss.IndexIVF) != (len(self) > FLAT_VECTORS):
            self._let_go()
            self._index = self._made()
            self._put([row for row, owner in enumerate(self._owners) if owner is not None])
        most = min(len(self), _CROWDED * count)
        scores, rows = (
            found[0].tolist() for found in self._index.search(query.astype(np.float32)[None], most)
        )
        known = [(score, row) for score, row in zip(scores, rows, strict=True) if row >= 0]
        least = known[-1][0] if len(known) == most < len(self) else -np.inf
        best: dict[str, float] = {}
        for score, row in known:
            owner = self._owners[row]
            if owner is None or score <= least or (len(best) >= count and score < min(best.values())):
                break
            best.setdefault(owner, score)
        return best

    def _row(self) -> int:
        if self._free:
            return self._free.pop()
        if len(self._owners) == len(self._codes):
            grown = np.zeros((2 * len(self._codes), self._dims), dtype=np.int8)
            grown[: len(self._codes)] = self._codes
            self._codes.fill(0)
            self._codes = grown
        self._owners.append(None)
        return len(self._owners) - 1

    def _made(self) -> Any:
        kind, metric = faiss.ScalarQuantizer.QT_8bit_direct_signed, faiss.METRIC_INNER_PRODUCT
        if len(self) <= FLAT_VECTORS:
            return faiss.IndexIDMap(faiss.IndexScalarQuantizer(self._dims, kind, metric))
        coarse = faiss.IndexFlatIP(self._dims)
        coarse.add(self._centroids.astype(np.float32))
        lists = len(self._centroids)
        made = faiss.IndexIVFScalarQuantizer(coarse, self._dims, lists, kind, metric, False)
        made.nprobe = min(_PROBES, lists)
        made.is_trained = True
        return made

    def _put(self, rows: Sequence[int]) -> None:
        for start in range(0, len(rows), _ADDED):
            part = rows[start : start + _ADDED]
            self._index.add_with_ids(self._codes[part].astype(np.float32), np.asarray(part, dtype=np.int64))

    def _take_out(self, rows: Sequence[int]) -> None:
        """Out of their lists: the last of a list takes the place, and where that was is overwritten."""
        lists = self._index.invlists
        homes = self._index.quantizer.search(self._codes[rows].astype(np.float32), 1)[1][:, 0]
        for row, home in zip(rows, homes.tolist(), strict=True):
            size = lists.list_size(home)
            ids = faiss.rev_swig_ptr(lists.get_ids(home), size)
            codes = faiss.rev_swig_ptr(lists.get_codes(home), size * lists.code_size).reshape(size, -1)
            (at,) = np.flatnonzero(ids == row)
            ids[at], codes[at] = ids[size - 1], codes[size - 1]
            codes[size - 1] = 0
            lists.resize(home, size - 1)
        self._index.ntotal -= len(rows)

    def _let_go(self) -> None:
        """Overwrites what faiss holds: it is made again when it is next asked."""
        index: Any = self._index
        self._index = None
        if isinstance(index, faiss.IndexIVF):
            lists: Any = index.invlists
            for home in range(lists.nlist):
                if size := lists.list_size(home) * lists.code_size:
                    faiss.rev_swig_ptr(lists.get_codes(home), size)[:] = 0
        elif index is not None:
            flat: Any = faiss.downcast_index(index.index)
            if flat.codes.size():
                faiss.rev_swig_ptr(flat.codes.data(), flat.codes.size())[:] = 0
