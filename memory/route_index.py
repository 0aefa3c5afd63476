"""Routing records held in host memory: each memory's token keys and hidden mean, filled from the bank on
demand.

A cache and nothing more: bounded in bytes, emptied when another process erased something.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from threading import Lock

from mnemos.attention.memory_codec import RouteKeys

DEFAULT_BUDGET_BYTES = 256 * 1024 * 1024


class RouteIndex:
    """Decoded routing records by namespace and memory id; the least recently used go first."""

    def __init__(
        self,
        read: Callable[[str, Sequence[str]], Mapping[str, bytes]],
        decode: Callable[[bytes], RouteKeys],
        *,
        budget_bytes: int = DEFAULT_BUDGET_BYTES,
    ) -> None:
        self._read = read
        self._decode = decode
        self._budget = budget_bytes
        self._held: OrderedDict[tuple[str, str], RouteKeys] = OrderedDict()
        self._lock = Lock()
        self._drops = 0  # so far: what was read before one may be what it was about
        self.bytes = 0

    def records(self, namespace: str, ids: Sequence[str]) -> dict[str, RouteKeys]:
        """The records of those memories that have one."""
        with self._lock:
            drops = self._drops
            missing = [memory_id for memory_id in ids if (namespace, memory_id) not in self._held]
        fresh = (
            {key: self._decode(data) for key, data in self._read(namespace, missing).items()}
            if missing
            else {}
        )
        found = {}
        with self._lock:
            for memory_id in ids:
                key = (namespace, memory_id)
                record = self._held.get(key) or fresh.get(memory_id)
                if record is None:
                    continue
                found[memory_id] = record
                if key not in self._held:
                    if drops != self._drops:
                        continue
                    self._held[key] = record
                    self.bytes += record.nbytes
                self._held.move_to_end(key)
            while self.bytes > self._budget:
                self.bytes -= self._held.popitem(last=False)[1].nbytes
        return found

    def keys(self) -> list[tuple[str, str]]:
        """(namespace, memory id) of what is held."""
        with self._lock:
            return list(self._held)

    def drop(self, namespace: str | None = None, memory_id: str | None = None) -> None:
        """Zero and let go of one memory's record, a namespace's, or all."""
        with self._lock:
            self._drops += 1
            for key in list(self._held):
                if namespace in (None, key[0]) and memory_id in (None, key[1]):
                    record = self._held.pop(key)
                    self.bytes -= record.nbytes
                    record.zero_()
