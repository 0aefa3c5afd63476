"""What the store does with traces: what a model keeps of memories."""

import builtins
from collections.abc import Callable, Iterator, Mapping, Sequence

from mnemos.store import catalog, lookups, reading, shard_blocks, shards, writing
from mnemos.store.core import Core
from mnemos.store.reading import Made
from mnemos.store.records import TraceDraft
from mnemos.store.recovery import settle
from mnemos.store.shards import Shard


class TraceStore:
    """A part of `Store`, which has the bank open."""

    _core: Core

    def put_traces(self, namespace: str, drafts: Sequence[TraceDraft]) -> None:
        """Stores traces as one durable group; a memory's former trace is superseded. NotFoundError."""
        writing.put_traces(self._core, namespace, drafts)

    def get_kv(self, namespace: str, memory_id: str) -> bytes:
        """NotFoundError when there is none, BankUnreadableError when it is damaged."""
        with self._core.reading():
            return reading.read_frame(self._core, self._core.get(namespace), memory_id, "kv")

    def get_kvs(self, namespace: str, ids: Sequence[str]) -> dict[str, bytes]:
        """Of those that have one: cheaper than one by one."""
        with self._core.reading():
            found = self._core.find(namespace)
            return {} if found is None else reading.read_frames(self._core, found, ids, "kv")

    def made_of_kvs(
        self,
        namespace: str,
        ids: Sequence[str],
        make: Callable[[bytes | bytearray], Made],
        threads: int = 1,
    ) -> dict[str, Made]:
        """What `make` makes of the KV of those that have one, in as many threads. The bytes are its own."""
        with self._core.reading():
            found = self._core.find(namespace)
            if found is None:
                return {}
            return reading.made_of_frames(self._core, found, ids, "kv", make, writable=True, threads=threads)

    def get_route(self, namespace: str, memory_id: str) -> bytes:
        with self._core.reading():
            return reading.read_frame(self._core, self._core.get(namespace), memory_id, "route")

    def get_routes(self, namespace: str, ids: Sequence[str]) -> dict[str, bytes]:
        """Of those that have one."""
        with self._core.reading():
            found = self._core.find(namespace)
            return {} if found is None else reading.read_frames(self._core, found, ids, "route")

    def pending_traces(self, namespace: str | None, fingerprint: str) -> builtins.list[tuple[str, str]]:
        """(namespace, memory id) of finished memories without a trace of that model, oldest first; those
        that an erase wrote anew come last."""
        with self._core.reading():
            found = None if namespace is None else self._core.find(namespace)
            if namespace is not None and found is None:
                return []
            pairs = lookups.pending_traces(
                self._core.catalog, None if found is None else found.id, fingerprint
            )
            names = {row_id: self._core.by_id(row_id) for row_id in {pair[0] for pair in pairs}}
            return [(known.name, pair[1]) for pair in pairs if (known := names[pair[0]]) is not None]

    def traced_ids(self, namespace: str) -> builtins.list[str]:
        """Ids of the memories that have a trace, hidden ones too."""
        with self._core.reading():
            found = self._core.find(namespace)
            return [] if found is None else reading.traced_ids(self._core, found)

    def new_routes(
        self, namespace: str, after: int = 0, most: int | None = None
    ) -> tuple[int, builtins.list[str]]:
        """A mark of how far the bank has come, and ids of the memories whose routing record lies behind the
        mark
        `after`, oldest first. A mark that is lower than before, or another erase epoch, makes older marks
        void. Where there are more than `most`, the mark is that of the last one given.
        """
        with self._core.reading():
            found = self._core.find(namespace)
            with self._core.catalog.read() as connection:
                return catalog.new_routes(connection, "" if found is None else found.id, after, most)

    def put_vectors(self, namespace: str, form: str, stride: int, vectors: Mapping[str, bytes]) -> int:
        """Keeps memories' vectors, `stride` bytes each, for `vector_shards`; of how many memories. `form`
        says how they were made: those of another form go. NotFoundError.
        """
        with self._core.writing():
            found = self._core.get(namespace)
            settle(self._core, found)
            return shards.put(self._core, found, form, stride, vectors)

    def vector_shards(self, namespace: str, form: str, stride: int) -> Iterator[Shard]:
        """Vectors that were kept of a namespace; what can't be read is left out."""
        with self._core.reading():
            found = self._core.find(namespace)
            if found is not None:
                yield from shards.readable(self._core, found, form, stride)

    def vector_blocks(self, namespace: str, form: str, stride: int) -> dict[int, str]:
        """The blocks that vectors were kept of, and the name of what each holds: another name is other
        contents.
        """
        with self._core.reading():
            found = self._core.find(namespace)
            return {} if found is None else shard_blocks.listed(found, form, stride)

    def vector_block(self, namespace: str, block: int, name: str) -> bytes | None:
        """Of each vector of a block 16 bytes of memory id and its bytes; None where it can't be read."""
        with self._core.reading():
            found = self._core.find(namespace)
            return None if found is None else shard_blocks.entries(self._core, found, block, name)

    def put_prefix(self, fingerprint: str, payload: bytes) -> None:
        writing.put_prefix(self._core, fingerprint, payload)

    def get_prefix(self, fingerprint: str) -> bytes | None:
        with self._core.reading():
            return reading.read_prefix(self._core, fingerprint)
