"""Memories in a pool for as long as somebody reads them."""

from collections.abc import Callable, Sequence
from types import TracebackType

from mnemos.attention.gpu.page_room import Entry
from mnemos.attention.kernels.memory_table import MemoryTable


class DeviceReads:
    """Memories in the pool for one reader; they stay until `release`, or the end of its `with`."""

    def __init__(
        self, entries: Sequence[Entry], table: MemoryTable, let_go: Callable[[Sequence[Entry]], None]
    ) -> None:
        """`let_go` ends the hold that the reader has of each entry."""
        self._let_go = let_go
        self._entries: list[Entry] | None = list(entries)
        self.keys = tuple(entry.key for entry in entries)
        self.table = table
        self.owners = tuple(index for index, entry in enumerate(entries) for _ in entry.tokens)
        arrivals = {id(entry.arrival): entry.arrival for entry in entries if entry.arrival}
        self._arrivals = tuple(arrivals.values())

    def wait(self, layer: int) -> None:
        """What the current stream is given from now on waits until that layer has arrived.

        Layers arrive in order. Not inside a graph's capture or replay: before it, for the last layer.
        """
        for arrival in self._arrivals:
            arrival[layer].wait()

    def release(self) -> None:
        """Let go; what the current stream was given so far still reads what it should."""
        entries, self._entries = self._entries, None
        if entries is not None:
            self._let_go(entries)

    def __enter__(self) -> "DeviceReads":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
