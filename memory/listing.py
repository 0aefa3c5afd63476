"""`Listing`: the memories that a filter allows, found piece by piece, so that a screen need not wait."""

import time
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from mnemos.errors import NotFoundError
from mnemos.memory.convert import to_memory
from mnemos.memory.records import Memory
from mnemos.store.words import Filter

if TYPE_CHECKING:
    from mnemos.memory.bank import MemoryBank
    from mnemos.store.browsing import Uses

Sort = Literal["created", "size", "uses"]
SORTS: tuple[Sort, ...] = ("created", "size", "uses")

_HINTS = 200  # memories that the words' index names before the whole namespace is searched
_FEW = 64  # found so far; with fewer, the index is asked
_FIRST_ROWS = 250
_FEWEST_ROWS, _MOST_ROWS = 250, 50_000  # of one piece
_PIECE_S = 0.01  # that a piece should take: as long as others wait for the database


class Listing:
    """Call `grow` until it says that all is found; `count` and `page` can be asked for at any time.

    Newest first, or largest first, or most used first; the order other than by age is there at the end only.
    Safe where one thread grows it while others read pages.
    """

    def __init__(
        self,
        bank: "MemoryBank",
        namespace: str,
        chosen: Filter | None = None,
        *,
        sort: Sort = "created",
        reverse: bool = False,
        within: tuple[int, int] | None = None,
    ) -> None:
        """`chosen` without a `like`; `within` are the lowest and highest ordinal to look at."""
        self.sort = sort
        self._store, self._namespace = bank.store, namespace
        self._chosen = Filter() if chosen is None else chosen
        self._is_whole = self._chosen == Filter()
        self._reverse = reverse
        self._within = within
        self._found: array[int] = array("q")
        self._hints: array[int] = array("q")
        self._dense: range | None = None
        self._total = 0  # rows of the namespace
        self._low = self._next = self._high = 0
        self._rows = _FIRST_ROWS
        self._has_begun = self.is_complete = False

    @property
    def count(self) -> int:
        """How many there are, of those found so far; exact from the start without a filter."""
        if self._dense is not None:
            return len(self._dense)
        if self.is_quick and not self.is_complete:
            return self._total
        return len(self._found) + len(self._tail())

    @property
    def is_quick(self) -> bool:
        """Whether its first page can be read before anything is searched or counted."""
        return self._is_whole and self.sort == "created" and not self._reverse and self._within is None

    @property
    def settled(self) -> int:
        """How many, from the first on, stay where they are as more is found."""
        if self.is_complete or self.is_quick:
            return self.count
        return len(self._found) if self.sort == "created" and not self._reverse else 0

    @property
    def share(self) -> float:
        """How much of the namespace was looked at, 0 to 1."""
        span = self._high - self._low
        return 1.0 if self.is_complete or not span else (self._high - self._next) / span

    def finish(self) -> "Listing":
        while self.grow():
            pass
        return self

    def grow(self) -> bool:
        """Looks at one more piece; whether more is left. NotFoundError, AmbiguousIdError."""
        if self.is_complete:
            return False
        if not self._has_begun:
            self._begin()
            if self.is_complete:
                return False
        low = max(self._next - self._rows, self._low)
        started = time.perf_counter()
        self._found.extend(self._store.ordinals(self._namespace, self._chosen, low, self._next))
        self._pace(time.perf_counter() - started)
        is_first, self._next = self._next == self._high, low
        if is_first and self._chosen.matching and len(self._found) < _FEW:
            self._hints = self._store.hinted(self._namespace, self._chosen, _HINTS)
        if low <= self._low:
            self._end()
        return not self.is_complete

    def page(self, limit: int, offset: int) -> Sequence[Memory | None]:
        """Some of them in order; None for one that was forgotten since it was found."""
        if offset >= self.count and self._has_begun:
            return []
        if self._dense is not None:
            wanted: Sequence[int] = self._dense[offset : offset + limit]
        elif self.is_quick and not self.is_complete and offset + limit > len(self._found):
            rows = self._store.list(self._namespace, include_hidden=True, limit=limit, offset=offset)
            return [to_memory(row) for row in rows]
        else:
            wanted = self._found[offset : offset + limit]
            if len(wanted) < limit:
                wanted = (self._found + self._tail())[offset : offset + limit]
        found = self._store.at(self._namespace, wanted)
        return [None if record is None else to_memory(record) for record in found]

    def find(self, memory_id: str) -> int | None:
        """The place of a memory in the list; None where it is not, or not yet. NotFoundError."""
        at = self._store.get(self._namespace, memory_id).ordinal
        held: Sequence[int] = self._found if self._dense is None else self._dense
        try:
            return held.index(at)
        except ValueError:
            return None

    def uses(self, ids: Sequence[str]) -> "dict[str, Uses]":
        """How often each was recalled for a reply, and when last; without those that never were."""
        return self._store.uses(self._namespace, ids)

    def _begin(self) -> None:
        first, last = self._store.ends(self._namespace)
        self._has_begun = True
        if not last:
            self.is_complete = True
            return
        self._low, self._high = first - 1, last
        if self._within is not None:
            self._low = max(self._low, self._within[0] - 1)
            self._high = max(min(self._high, self._within[1]), self._low)
        self._next = self._high
        if self._is_whole and self._within is None and self.sort == "created":
            self._total = self._store.count(self._namespace)
            if last - first + 1 == self._total:  # a row at every ordinal
                ordinals = range(last, first - 1, -1)
                self._dense = ordinals[::-1] if self._reverse else ordinals
                self.is_complete = True
                return
        self._chosen = self._store.prepared(self._namespace, self._chosen)

    def _pace(self, took_s: float) -> None:
        if took_s < _PIECE_S / 2:
            self._rows = min(2 * self._rows, _MOST_ROWS)
        elif took_s > 2 * _PIECE_S:
            self._rows = max(self._rows // 2, _FEWEST_ROWS)

    def _tail(self) -> "array[int]":
        """Hints that the search has not come to yet."""
        return array("q", [at for at in self._hints if at <= self._next])

    def _end(self) -> None:
        """All are found: put them in order."""
        if self.sort != "created":
            weights = self._sizes() if self.sort == "size" else self._store.use_counts(self._namespace)
            self._found = array("q", sorted(self._found, key=lambda at: weights.get(at, 0), reverse=True))
        if self._reverse:
            self._found.reverse()
        self._hints = array("q")
        self.is_complete = True

    def _sizes(self) -> dict[int, int]:
        """Bytes of words and trace by ordinal."""
        traces: dict[str, int] = {}
        last = self._store.trace_rows()
        for low in range(0, last, _MOST_ROWS):
            traces |= self._store.trace_sizes(self._namespace, low, low + _MOST_ROWS)
        sizes: dict[int, int] = {}
        for low in range(self._low, self._high, _MOST_ROWS):
            rows = self._store.sizes(self._namespace, low, min(low + _MOST_ROWS, self._high))
            sizes.update((at, size + traces.get(memory_id, 0)) for at, memory_id, size in rows)
        return sizes


def listed(listing: Listing, limit: int | None = None, offset: int = 0) -> list[Memory]:
    """The first of a whole listing, as many as there are or `limit`; none for an unknown namespace."""
    try:
        listing.finish()
    except NotFoundError:
        return []
    found = listing.page(listing.count if limit is None else limit, offset)
    return [memory for memory in found if memory is not None]
