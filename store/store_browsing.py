"""What the store does for those who look through a large namespace."""

import builtins
from array import array
from collections.abc import Sequence

from mnemos.store import browsing, reading, restating, suggesting
from mnemos.store.browsing import DayCount, TraceCount, Uses
from mnemos.store.core import Core
from mnemos.store.records import MemoryRecord
from mnemos.store.words import Filter


class BrowsingStore:
    """A part of `Store`, which has the bank open. Ranges of ordinals are `(low, high]`.

    Each call reads a piece, and is as long as the piece is large. NotFoundError for an unknown namespace.
    """

    _core: Core

    def suggested(self, namespace: str, what: str, prefix: str, limit: int) -> builtins.list[tuple[str, str]]:
        """Up to `limit` "memories" (id, text), "sessions" (id, title) or "tags" that begin so."""
        look = {"memories": suggesting.memories, "sessions": suggesting.sessions, "tags": suggesting.tags}
        with self._core.reading():
            found = self._core.find(namespace)
            return [] if found is None else look[what](found.database, prefix, limit)

    def ends(self, namespace: str) -> tuple[int, int]:
        """The first and the last ordinal; 0 and 0 where there are none."""
        with self._core.reading():
            found = self._core.find(namespace)
            if found is None:
                return 0, 0
            with found.database.read() as connection:
                return browsing.ends(connection)

    def prepared(self, namespace: str, chosen: Filter) -> Filter:
        """A filter as `ordinals` takes it: with whole ids. NotFoundError, AmbiguousIdError."""
        with self._core.reading(), self._core.get(namespace).database.read() as connection:
            return browsing.prepared(connection, chosen)

    def ordinals(self, namespace: str, chosen: Filter, low: int, high: int) -> "array[int]":
        """Of the memories in the range that the filter allows, newest first."""
        with self._core.reading(), self._core.get(namespace).database.read() as connection:
            return browsing.ordinals(connection, chosen, low, high)

    def hinted(self, namespace: str, chosen: Filter, limit: int) -> "array[int]":
        """The ordinals of some that hold the filter's text, by the words' index; seldom all of them."""
        with self._core.reading(), self._core.get(namespace).database.read() as connection:
            return browsing.hinted(connection, chosen, limit)

    def at(self, namespace: str, ordinals: Sequence[int]) -> builtins.list[MemoryRecord | None]:
        """The memories there, in that order; None for one that is gone."""
        with self._core.reading():
            found = self._core.get(namespace)
            with found.database.read() as connection:
                rows = browsing.rows_at(connection, ordinals)
            known = reading.records(self._core, found, list(rows.values()))
        by_ordinal = {record.ordinal: record for record in known}
        return [by_ordinal.get(ordinal) for ordinal in ordinals]

    def day_counts(
        self, namespace: str, low: int, high: int, *, offset_us: int = 0
    ) -> builtins.list[DayCount]:
        """Memories and bytes by day and kind; days are those of a zone `offset_us` ahead of UTC."""
        with self._core.reading(), self._core.get(namespace).database.read() as connection:
            return browsing.days(connection, low, high, offset_us)

    def sizes(self, namespace: str, low: int, high: int) -> builtins.list[tuple[int, str, int]]:
        """(ordinal, id, bytes of text) of each memory in the range."""
        with self._core.reading(), self._core.get(namespace).database.read() as connection:
            return browsing.sizes(connection, low, high)

    def uses(self, namespace: str, ids: Sequence[str]) -> dict[str, Uses]:
        """Of these memories, by id: how many replies that are there each was recalled for, and the last."""
        with self._core.reading(), self._core.get(namespace).database.read() as connection:
            return browsing.uses(connection, ids)

    def use_counts(self, namespace: str) -> dict[int, int]:
        """By ordinal, of every memory that was recalled for a reply."""
        with self._core.reading(), self._core.get(namespace).database.read() as connection:
            return browsing.use_counts(connection)

    def trace_rows(self) -> int:
        """The end of the ranges that `trace_counts` and `trace_sizes` take."""
        with self._core.reading(), self._core.catalog.read() as connection:
            return browsing.last_row(connection)

    def trace_counts(self, namespace: str, low: int, high: int) -> builtins.list[TraceCount]:
        """Memories, tokens and bytes by what the model keeps of them."""
        with self._core.reading():
            found = self._core.get(namespace)
            with self._core.catalog.read() as connection:
                return browsing.traces(connection, found.id, low, high)

    def trace_sizes(self, namespace: str, low: int, high: int) -> dict[str, int]:
        """Bytes of traces by memory id."""
        with self._core.reading():
            found = self._core.get(namespace)
            with self._core.catalog.read() as connection:
                return browsing.trace_sizes(connection, found.id, low, high)

    def set_tags(self, namespace: str, memory_id: str, tags: Sequence[str]) -> MemoryRecord:
        """Other tags in the place of a memory's. NotFoundError, AmbiguousIdError, InvalidTextError."""
        full_id = restating.set_tags(self._core, namespace, memory_id, tags)
        return reading.by_id(self._core, namespace, [full_id])[0]
