"""The pool of memories on a device: pages in fixed memory, brought in beside the computation.

Everything that writes to the pool is on one copy stream, in order. Who reads waits for a layer's copies
(`DeviceReads.wait`), and what is let go of is overwritten only behind the reads that were queued until then.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from threading import Lock
from types import TracebackType

import torch
from torch import Tensor

from mnemos.attention.config import ModelConfig
from mnemos.attention.gpu import crossover
from mnemos.attention.gpu.copies import Move, copy_layers
from mnemos.attention.gpu.host_pool import HostPool
from mnemos.attention.gpu.page_room import Entry, Key, PageRoom, page_tensor, zero_pages
from mnemos.attention.gpu.staging import Staging
from mnemos.attention.gpu.streams import CopyStream, Mark, stream_for
from mnemos.attention.kernels.memory_table import MemoryTable
from mnemos.attention.kernels.page_layout import PageLayout, PayloadHead, read_head, write_pages
from mnemos.errors import BankUnreadableError, ModelMismatchError

Fetch = Callable[[Sequence[Key]], Mapping[Key, bytes]]
_TRIES = 4  # fetches of one request, each overtaken by an erase
_BITS_AT = 4  # in a KV payload


class DeviceReads:
    """Memories in the pool for one reader; they stay until `release`, or the end of its `with`."""

    def __init__(self, pool: "DevicePool", entries: Sequence[Entry], table: MemoryTable) -> None:
        self._pool = pool
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
            self._pool.let_go(entries)

    def __enter__(self) -> "DeviceReads":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class DevicePool:
    """KV of memories in device memory, bounded in bytes; which of them, `S3Fifo` says.

    The budget is a bound: where the device has less, the pool is smaller, down to nothing.
    """

    def __init__(
        self,
        config: ModelConfig,
        bits: int,
        *,
        budget_bytes: int,
        device: torch.device | str,
        host: HostPool | None = None,
        raw_dtype: torch.dtype = torch.bfloat16,
        gather_below: int | None = None,
        stream: CopyStream | None = None,
    ) -> None:
        """`host` keeps pages in pinned memory and must be of the same model and bits. `gather_below` is in
        bytes; by default what `crossover.py` measured on this machine. Raises ValueError.
        """
        self.device = torch.device(device)
        self._config, self._bits = config, bits
        self._layout = PageLayout(bits, config.kv_heads, config.head_dim)
        self._raw_dtype = raw_dtype
        self._stream = stream_for(self.device) if stream is None else stream
        if host is not None and host.pool.shape[::2] != (config.layers, self._layout.page_bytes):
            raise ValueError("the host pool is of another model or another number of bits")

        def make(shape: tuple[int, int, int]) -> Tensor:
            return torch.zeros(shape, dtype=torch.uint8, device=self.device)

        pool = page_tensor(config.layers, self._layout, budget_bytes, make).to(self.device)
        self._room = PageRoom(pool, self._wipe)
        self._host = host
        self._staging = Staging(self._layout.page_bytes, self.device, self._stream)
        self._flights: list[tuple[Mark, list[Entry]]] = []  # copies under way, and what they hold of the host
        self._gather_below = crossover.gather_below(self.device) if gather_below is None else gather_below
        self._lock = Lock()
        # What readers let go of, perhaps in the middle of a request: a reader may end whenever Python's
        # garbage collector finds it. And where their streams were.
        self._ended: deque[tuple[Sequence[Entry], Mark | None]] = deque()
        self._drops = 0  # so far: what was fetched before one may be what it was about
        self.hits = 0
        self.misses = 0

    @property
    def bytes(self) -> int:
        """Of the pages that memories have, padding included."""
        with self._lock:
            self._settle()
            return self._room.bytes

    @property
    def budget_bytes(self) -> int:
        return self._room.budget_bytes

    @property
    def host(self) -> HostPool | None:
        return self._host

    @property
    def pool(self) -> Tensor:
        """`[layers, pages, page_bytes]`."""
        return self._room.pool

    def keys(self) -> list[Key]:
        """Of what is held, here or in the host pool, or remembered to have been."""
        with self._lock:
            known = dict.fromkeys(self._room.known())
            if self._host is not None:
                known |= dict.fromkeys(self._host.known())
            return list(known)

    def page_in(self, keys: Sequence[Key], fetch: Fetch) -> DeviceReads:
        """Queue the copies of what is not here yet; `fetch` gives payloads of what neither pool has.

        As many of the keys as there is room for, in their order; a key that is left out was not there, has
        KV of other bits, or did not fit. Raises BankUnreadableError for a malformed payload,
        ModelMismatchError for one of another model, and what `fetch` raises.
        """
        keys = list(dict.fromkeys(keys))
        payloads: dict[Key, tuple[PayloadHead, bytes]] = {}
        asked: set[Key] = set()
        drops = -1
        for _ in range(_TRIES):
            with self._lock:
                if drops != self._drops:
                    drops = self._drops
                    payloads, asked = {}, set()
                missing = [key for key in keys if not self._has(key) and key not in asked]
                if not missing:
                    return self._admit(keys, payloads)
            asked |= set(missing)
            payloads |= self._checked(fetch(missing))
        with self._lock:
            return self._admit(keys, payloads if drops == self._drops else {})

    def drop(self, namespace: str | None = None, memory_id: str | None = None) -> None:
        """Zero and let go of one memory's pages, a namespace's, or all, in both pools.

        They are zeros when this returns, though somebody may still read them; their pages are free for
        others once nobody does.
        """
        with self._lock:
            self._drops += 1
            self._settle()
            self._land(wait=True)
            self._room.drop(namespace, memory_id)
            if self._host is not None:
                self._host.drop(namespace, memory_id)
            self._staging.wipe()
            self._stream.mark().synchronize()

    def let_go(self, entries: Sequence[Entry]) -> None:
        """The end of one reader's hold; `DeviceReads.release` calls it."""
        self._ended.append((entries, self._stream.fence()))
        if self._lock.acquire(blocking=False):  # otherwise whoever has it, or the next one
            try:
                self._settle()
            finally:
                self._lock.release()

    def _settle(self) -> None:
        while self._ended:
            entries, fence = self._ended[0]
            if fence is None and (fence := self._stream.fence()) is None:
                return
            self._ended.popleft()
            for entry in entries:
                entry.fences = [each for each in entry.fences if not each.done()]
                entry.fences.append(fence)
                self._room.let_go(entry)

    def _has(self, key: Key) -> bool:
        return key in self._room or (self._host is not None and key in self._host)

    def _checked(self, payloads: Mapping[Key, bytes]) -> dict[Key, tuple[PayloadHead, bytes]]:
        found: dict[Key, tuple[PayloadHead, bytes]] = {}
        config = self._config
        for key, payload in payloads.items():
            if len(payload) > _BITS_AT and payload[_BITS_AT] == 32:  # raw fp32 stays on the host
                continue
            try:
                head = read_head(payload)
            except ValueError as error:
                raise BankUnreadableError(f"{error}; run `mnemos bank verify --deep`") from None
            if (head.layers, head.kv_heads, head.head_dim) != (
                config.layers,
                config.kv_heads,
                config.head_dim,
            ):
                raise ModelMismatchError(
                    "a memory's KV was made by a model of another shape; run `mnemos bank reencode` with the "
                    "model to use"
                )
            if head.bits == self._bits:
                found[key] = (head, payload)
        return found

    def _admit(self, keys: Sequence[Key], payloads: Mapping[Key, tuple[PayloadHead, bytes]]) -> DeviceReads:
        self._settle()
        self._land(wait=False)
        chosen = self._fitting(keys, payloads)
        entries: dict[Key, Entry] = {}
        for key in chosen:
            entry = self._room.get(key)
            if entry is not None:
                self.hits += 1
                self._room.touch(entry)
                self._room.hold(entry)
                entries[key] = entry
        new = [key for key in chosen if key not in entries]
        self.misses += len(new)
        origins: dict[Key, Entry | None] = {}
        try:
            self._origins(new, payloads, origins)
            for key in new:
                origin = origins[key]
                tokens = payloads[key][0].tokens if origin is None else origin.tokens
                pages = payloads[key][0].tiles if origin is None else len(origin.pages)
                entry = self._room.add(key, tokens, pages)
                assert entry is not None  # `_fitting` counted the pages
                entries[key] = entry
            if new:
                self._bring(new, entries, origins, payloads)
            table = self._table([entries[key] for key in chosen])
        except BaseException:
            self._undo(new, entries, origins)
            raise
        held = [origin for origin in origins.values() if origin is not None]
        if held:
            self._flights.append((self._stream.mark(), held))
        self._land(wait=False)
        return DeviceReads(self, [entries[key] for key in chosen], table)

    def _fitting(self, keys: Sequence[Key], payloads: Mapping[Key, tuple[PayloadHead, bytes]]) -> list[Key]:
        """Of what is there, those that there is room for: each in turn, if it fits beside those before it."""
        room = self._room.available
        chosen = []
        for key in keys:
            entry = self._room.get(key)
            kept = self._host.get(key) if self._host is not None else None
            if entry is not None:
                pages = 0 if entry.holds else len(entry.pages)
            elif kept is not None:
                pages = len(kept.pages)
            elif key in payloads:
                pages = payloads[key][0].tiles
            else:
                continue
            if pages <= room:
                room -= pages
                chosen.append(key)
        return chosen

    def _origins(
        self,
        new: Sequence[Key],
        payloads: Mapping[Key, tuple[PayloadHead, bytes]],
        origins: dict[Key, Entry | None],
    ) -> None:
        """Entries in the host pool, held; None for a key that has no room there."""
        if self._host is None:
            origins |= dict.fromkeys(new)
            return
        for key in new:  # before others take their place
            entry = self._host.get(key)
            if entry is not None:
                self._host.hits += 1
                self._host.touch(entry)
                self._host.hold(entry)
                origins[key] = entry
        for key in new:
            if key not in origins:
                self._host.misses += 1
                head, _ = payloads[key]
                origins[key] = self._host.add(key, head.tokens, head.tiles)

    def _bring(
        self,
        new: Sequence[Key],
        entries: Mapping[Key, Entry],
        origins: Mapping[Key, Entry | None],
        payloads: Mapping[Key, tuple[PayloadHead, bytes]],
    ) -> None:
        moves = []
        unkept = [key for key in new if origins[key] is None]
        staged = 0
        if unkept:
            self._staging.reserve(sum(len(entries[key].pages) for key in unkept))
        for key in new:
            pages, origin = entries[key].pages, origins[key]
            if origin is None:
                first, staged = staged, staged + len(pages)
                fill = partial(self._stage, *payloads[key], first, staged)
                moves.append(Move(self._staging.layer, range(first, staged), pages, fill))
            else:
                written = key not in payloads
                fill_kept = None if written else partial(self._keep, *payloads[key], origin)
                moves.append(Move(self._kept_layer, origin.pages, pages, fill_kept))
        arrival = copy_layers(self._stream, moves, self._room.pool, gather_below=self._gather_below)
        self._staging.finish()
        for key in new:
            entries[key].arrival = arrival

    def _kept_layer(self, layer: int) -> Tensor:
        assert self._host is not None
        return self._host.pool[layer]

    def _stage(self, head: PayloadHead, payload: bytes, first: int, last: int, layer: int) -> None:
        write_pages(payload, head, self._staging.array(layer)[None, first:last], range(layer, layer + 1))

    def _keep(self, head: PayloadHead, payload: bytes, entry: Entry, layer: int) -> None:
        assert self._host is not None
        self._host.write(entry, payload, head, layer)

    def _table(self, entries: Sequence[Entry]) -> MemoryTable:
        pages = [page for entry in entries for page in entry.pages]
        return MemoryTable(
            self._room.pool,
            torch.tensor(pages, dtype=torch.int32, device=self.device),
            tuple(tokens for entry in entries for tokens in entry.tokens),
            self._bits,
            self._raw_dtype,
            self._config.kv_heads,
            self._config.head_dim,
        )

    def _undo(
        self, new: Sequence[Key], entries: Mapping[Key, Entry], origins: Mapping[Key, Entry | None]
    ) -> None:
        """Nothing of a request that failed half-way is taken for arrived."""
        self._stream.mark().synchronize()
        for key in new:
            if key in entries:
                self._room.remove(entries[key])
            origin = origins.get(key)
            if origin is not None and self._host is not None:
                self._host.remove(origin)
                self._host.let_go(origin)
        for entry in entries.values():
            self._room.let_go(entry)

    def _land(self, *, wait: bool) -> None:
        """Let go of host pages whose copies are over; of all, after waiting, where `wait` says so."""
        under_way = []
        for mark, held in self._flights:
            if wait:
                mark.synchronize()
            if not (wait or mark.done()):
                under_way.append((mark, held))
                continue
            for entry in held:
                if self._host is not None:
                    self._host.let_go(entry)
        self._flights = under_way

    def _wipe(self, entry: Entry) -> None:
        """Behind the reads that were let go of."""
        for fence in entry.fences:
            self._stream.follow(fence)
        self._stream.submit(partial(zero_pages, self._room.pool, entry))
