"""`Survey`: what a namespace holds by day, kind and fidelity, summed up piece by piece."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

from mnemos.memory.records import Fidelity, Kind

if TYPE_CHECKING:
    from mnemos.memory.bank import MemoryBank

_FEWEST_ROWS, _FIRST_ROWS, _MOST_ROWS = 2_000, 5_000, 100_000  # of one piece
_PIECE_S = 0.02  # that a piece should take: as long as others wait for the database
_EPOCH = date(1970, 1, 1)


@dataclass(slots=True)
class Part:
    """A sum; `bytes` of words for a kind and a day, of traces for a fidelity."""

    memories: int = 0
    bytes: int = 0


@dataclass(slots=True)
class Day(Part):
    """The memories of one day; `low` and `high` are the ordinals between which they lie."""

    low: int = 0
    high: int = 0
    kinds: "dict[Kind, Part]" = field(default_factory=dict)


class Survey:
    """Call `grow` until it says that all is counted; the sums so far can be read at any time.

    Days begin at midnight where the computer is, by its clock of now.
    """

    def __init__(self, bank: "MemoryBank", namespace: str) -> None:
        self._store, self._namespace = bank.store, namespace
        self._days: dict[int, Day] = {}
        self.kinds: dict[Kind, Part] = {}
        self.fidelities: dict[Fidelity, Part] = {}
        self.tokens = 0
        self._offset = datetime.now().astimezone().utcoffset() or timedelta()
        self._low = self._next = self._high = self._row = self._last_row = 0
        self._rows = _FIRST_ROWS
        self._has_begun = self.is_complete = False

    @property
    def days(self) -> Mapping[date, Day]:
        """Those with memories, oldest first."""
        return {_EPOCH + timedelta(days=at): self._days[at] for at in sorted(self._days)}

    @property
    def memories(self) -> int:
        return sum(part.memories for part in self.kinds.values())

    @property
    def text_bytes(self) -> int:
        return sum(part.bytes for part in self.kinds.values())

    @property
    def trace_bytes(self) -> int:
        return sum(part.bytes for part in self.fidelities.values())

    def start_of(self, day: date) -> datetime:
        """The moment when a day begins."""
        return datetime(day.year, day.month, day.day, tzinfo=UTC) - self._offset

    def finish(self) -> "Survey":
        while self.grow():
            pass
        return self

    def grow(self) -> bool:
        """Counts one more piece; whether more is left. NotFoundError when the namespace went meanwhile."""
        if not self._has_begun:
            self._begin()
        started = time.perf_counter()
        if self._next > self._low:
            self._words()
        elif self._row < self._last_row:
            self._traces()
        else:
            self.is_complete = True
            return False
        took_s = time.perf_counter() - started
        if took_s < _PIECE_S / 2:
            self._rows = min(2 * self._rows, _MOST_ROWS)
        elif took_s > 2 * _PIECE_S:
            self._rows = max(self._rows // 2, _FEWEST_ROWS)
        return True

    def _begin(self) -> None:
        first, last = self._store.ends(self._namespace)
        self._has_begun = True
        if last:  # a namespace that holds nothing may not be there yet
            self._low, self._next = first - 1, last
            self._last_row = self._store.trace_rows()

    def _words(self) -> None:
        low = max(self._next - self._rows, self._low)
        offset_us = int(self._offset.total_seconds() * 1_000_000)
        for each in self._store.day_counts(self._namespace, low, self._next, offset_us=offset_us):
            kind: Kind = each.kind  # type: ignore[assignment]
            day = self._days.get(each.day)
            if day is None:
                day = self._days[each.day] = Day(low=each.low, high=each.high)
            day.low, day.high = min(day.low, each.low), max(day.high, each.high)
            for part in (day, day.kinds.setdefault(kind, Part()), self.kinds.setdefault(kind, Part())):
                part.memories += each.memories
                part.bytes += each.text_bytes
        self._next = low

    def _traces(self) -> None:
        high = min(self._row + self._rows, self._last_row)
        for each in self._store.trace_counts(self._namespace, self._row, high):
            # As `convert.to_memory` names them.
            name: Fidelity = "pending" if not each.is_read else "vivid" if each.has_trace else "faint"
            part = self.fidelities.setdefault(name, Part())
            part.memories += each.memories
            part.bytes += each.trace_bytes
            self.tokens += each.tokens
        self._row = high
