"""Which of the things in a cache of bounded bytes to let go of: S3-FIFO (Yang and others, SOSP 2023).

What is new waits in a small queue. What was asked for again by the time it gets to the end of that moves on
to the main queue; the rest leaves, and is remembered by its key alone for a while: asked for again, it goes
to the main queue at once. There, what was asked for goes round again. The small queue has half of the bytes:
the paper's tenth loses to LRU where a conversation comes back to what it said just now.
"""

from collections import OrderedDict
from collections.abc import Container, Hashable
from typing import Generic, TypeVar

SMALL_SHARE = 0.5
_MOST_ASKED = 3

Key = TypeVar("Key", bound=Hashable)


class S3Fifo(Generic[Key]):
    """Keys with their sizes; whoever has the things themselves does what it says. Not thread-safe."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._small: OrderedDict[Key, int] = OrderedDict()
        self._main: OrderedDict[Key, int] = OrderedDict()
        self._left: OrderedDict[Key, int] = OrderedDict()  # keys of what left the small queue
        self._asked: dict[Key, int] = {}  # since it came, or last went round
        self._small_bytes = 0
        self._left_bytes = 0
        self.bytes = 0

    def __contains__(self, key: Key) -> bool:
        return key in self._asked

    def keys(self) -> list[Key]:
        return [*self._small, *self._main]

    def touch(self, key: Key) -> None:
        """It was asked for."""
        self._asked[key] = min(self._asked[key] + 1, _MOST_ASKED)

    def admit(self, key: Key, size: int) -> list[Key] | None:
        """Takes a new key in; those that leave for it. None when it is larger than everything."""
        if size > self._budget:
            return None
        self.add(key, size)
        leaving: list[Key] = []
        while self.bytes > self._budget:
            leaving += self._step(())
        return leaving

    def add(self, key: Key, size: int) -> None:
        """Takes a new key in, for whoever makes room with `evict` beforehand."""
        self._asked[key] = 0
        self.bytes += size
        if key in self._left:
            self._left_bytes -= self._left.pop(key)
            self._main[key] = size
        else:
            self._small[key] = size
            self._small_bytes += size

    def evict(self, staying: Container[Key] = ()) -> Key | None:
        """The key that leaves next, none of `staying`; None when those are all."""
        while any(key not in staying for key in self._asked):
            for key in self._step(staying):
                return key
        return None

    def drop(self, key: Key) -> None:
        """Lets go of a key, and of having known it."""
        if self._asked.pop(key, None) is not None:
            if key in self._small:
                size = self._small.pop(key)
                self._small_bytes -= size
            else:
                size = self._main.pop(key)
            self.bytes -= size
        if key in self._left:
            self._left_bytes -= self._left.pop(key)

    def known(self) -> list[Key]:
        """Keys that are held, and those that are only remembered."""
        return [*self._asked, *self._left]

    def _step(self, staying: Container[Key]) -> list[Key]:
        """Moves one key on, or out."""
        small = next((key for key in self._small if key not in staying), None)
        main = next((key for key in self._main if key not in staying), None)
        turn_of_small = self._small_bytes > SMALL_SHARE * self._budget or not self._main
        if small is not None and (turn_of_small or main is None):
            key, size = small, self._small.pop(small)
            self._small_bytes -= size
            if self._asked[key]:
                self._asked[key] = 0
                self._main[key] = size
                return []
            self._left[key] = size
            self._left_bytes += size
            while self._left_bytes > self._budget:
                self._left_bytes -= self._left.popitem(last=False)[1]
        elif main is not None:
            key, size = main, self._main.pop(main)
            if self._asked[key]:
                self._asked[key] -= 1
                self._main[key] = size
                return []
        else:
            return []
        del self._asked[key]
        self.bytes -= size
        return [key]
