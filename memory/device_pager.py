"""Brings KV blocks from the bank to a device, where they stay quantised and attention reads them."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from mnemos.attention.gpu.pool import DevicePool
from mnemos.attention.gpu.reads import PagedSpan, Reads
from mnemos.attention.kernels.memory_table import MemoryTable
from mnemos.errors import NotFoundError
from mnemos.memory.records import Tier

Key = tuple[str, str]  # namespace, memory id
Payloads = dict[Key, bytes]


class DevicePager:
    """As `Pager`, over a pool of pages on a device. What was erased is zeroed there."""

    def __init__(
        self,
        pool: DevicePool,
        read: Callable[[str, str], bytes],
        read_many: Callable[[str, Sequence[str]], Mapping[str, bytes]],
    ) -> None:
        """`read(namespace, id)` gives a block's payload, `read_many(namespace, ids)` those of several at
        once, as far as they are there.
        """
        self.pool = pool
        self._read, self._read_many = read, read_many

    @property
    def bytes(self) -> int:
        """Held in host memory; `pool` tells of the device's."""
        return 0 if self.pool.host is None else self.pool.host.bytes

    @property
    def hits(self) -> int:
        """Of the host pool, among what the device did not have."""
        return 0 if self.pool.host is None else self.pool.host.hits

    @property
    def misses(self) -> int:
        return self.pool.misses if self.pool.host is None else self.pool.host.misses

    def page(self, namespace: str, ids: Sequence[str]) -> list[list[PagedSpan]]:
        """The spans of each memory, in order. Raises NotFoundError when one is gone or finds no room."""
        found = self.page_present(namespace, ids)
        for memory_id in ids:
            if memory_id not in found:
                raise NotFoundError(f"Memory {memory_id} is gone, or the device has no room for it.")
        return [found[memory_id] for memory_id in ids]

    def page_present(self, namespace: str, ids: Sequence[str]) -> dict[str, list[PagedSpan]]:
        """As `page`, by id; what is gone or finds no room is left out. Their pages stay for as long as a span
        is in use.
        """
        keys = [(namespace, memory_id) for memory_id in dict.fromkeys(ids)]
        if not keys:
            return {}
        reads = self.pool.page_in(keys, self._fetch)
        held = _Held(reads)
        if not reads.keys:
            return {}
        found: dict[str, list[PagedSpan]] = {memory_id: [] for _, memory_id in reads.keys}
        for span, owner in enumerate(reads.owners):
            found[reads.keys[owner][1]].append(PagedSpan(held, span))
        return found

    def held(self, namespace: str, ids: Sequence[str]) -> dict[str, Tier]:
        """Which of these memories are held, and where, by id; on the device rather than in host memory."""
        keys = [(namespace, each) for each in ids]
        on_device, in_host = self.pool.holds(keys)
        found: dict[str, Tier] = {memory_id: "host" for _, memory_id in in_host}
        return found | {memory_id: "gpu" for _, memory_id in on_device}

    def held_bytes(self) -> dict[Tier, int]:
        """Bytes of all namespaces."""
        return {"gpu": self.pool.bytes, "host": self.bytes}

    def keys(self) -> list[Key]:
        """(namespace, memory id) of what is held, or remembered to have been."""
        return list(self.pool.keys())

    def drop(self, namespace: str | None = None, memory_id: str | None = None) -> None:
        """Zero and let go of one memory's pages, a namespace's, or all."""
        self.pool.drop(namespace, memory_id)

    def _fetch(self, keys: Sequence[Key]) -> Payloads:
        """Payloads of those that are there."""
        found: Payloads = {}
        for namespace in dict.fromkeys(each for each, _ in keys):
            ids = [memory_id for each, memory_id in keys if each == namespace]
            many = self._read_many(namespace, ids) if len(ids) > 1 else {}
            found |= {(namespace, memory_id): payload for memory_id, payload in many.items()}
        for key in keys:
            if key not in found:
                with suppress(NotFoundError):
                    found[key] = self._read(*key)
        return found


class _Held:
    """What was paged in together, let go of once nobody has a span of it, or when its reader says so."""

    def __init__(self, reads: Reads) -> None:
        self.table: MemoryTable = reads.table
        self._reads = reads
        self._end = weakref.finalize(self, reads.release)

    def wait(self, layer: int) -> None:
        self._reads.wait(layer)

    def release(self) -> None:
        self._end()
