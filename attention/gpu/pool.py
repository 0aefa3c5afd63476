"""The pool of memories on a device: pages in fixed memory, brought in beside the computation.

Everything that writes to the pool is on one copy stream, in order. Who reads waits for a layer's copies
(`DeviceReads.wait`), and what is let go of is overwritten only behind the reads that were queued until then.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from threading import Lock

import torch
from torch import Tensor

from mnemos.attention.config import ModelConfig
from mnemos.attention.gpu import crossover
from mnemos.attention.gpu.checked_payloads import checked_payloads
from mnemos.attention.gpu.copies import Move, copy_layers
from mnemos.attention.gpu.device_reads import DeviceReads
from mnemos.attention.gpu.host_pool import HostPool
from mnemos.attention.gpu.page_room import Entry, Key, PageRoom, page_tensor, zero_pages
from mnemos.attention.gpu.staging import Staging
from mnemos.attention.gpu.streams import CopyStream, Mark, stream_for
from mnemos.attention.kernels.memory_table import MemoryTable, upload
from mnemos.attention.kernels.page_layout import PageLayout, PayloadPages

Fetch = Callable[[Sequence[Key]], Mapping[Key, bytes]]
_TRIES = 4  # fetches of one request, each overtaken by an erase
_LAYERS_AT_ONCE = 4  # written to pages in one go: most of the gain of all, and layer 0 leaves sooner


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
        zeroed = self._stream.fence()
        if zeroed is not None:
            self._stream.follow(zeroed)  # it was made on the current stream
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

    def holds(self, keys: Sequence[Key]) -> tuple[list[Key], list[Key]]:
        """Those of `keys` that are held on the device, and those in the host pool."""
        with self._lock:
            host = self._host
            return (
                [key for key in keys if key in self._room],
                [] if host is None else [key for key in keys if key in host],
            )

    def page_in(self, keys: Sequence[Key], fetch: Fetch) -> DeviceReads:
        """Queue the copies of what is not here yet; `fetch` gives payloads of what neither pool has.

        As many of the keys as there is room for, in their order; a key that is left out was not there, has
        KV of other bits, or did not fit. Raises BankUnreadableError for a malformed payload,
        ModelMismatchError for one of another model, and what `fetch` raises.
        """
        keys = list(dict.fromkeys(keys))
        payloads: dict[Key, PayloadPages] = {}
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
            payloads |= checked_payloads(fetch(missing), self._config, self._bits)
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

    def _let_go(self, entries: Sequence[Entry]) -> None:
        """The end of one reader's hold."""
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

    def _admit(self, keys: Sequence[Key], payloads: Mapping[Key, PayloadPages]) -> DeviceReads:
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
                tokens = payloads[key].tokens if origin is None else origin.tokens
                pages = payloads[key].tiles if origin is None else len(origin.pages)
                entry = self._room.add(key, tokens, pages)
                assert entry is not None  # `_fitting` counted the pages
                entries[key] = entry
            if new:
                self._bring(new, entries, origins, payloads)
            table = self._table([entries[key] for key in chosen])
        except torch.OutOfMemoryError:  # of what copies need beside the pages
            self._undo(new, entries, origins)
            if not new:
                raise
            return self._admit([key for key in chosen if key not in new], {})
        except BaseException:
            self._undo(new, entries, origins)
            raise
        held = [origin for origin in origins.values() if origin is not None]
        if held:
            self._flights.append((self._stream.mark(), held))
        self._land(wait=False)
        return DeviceReads([entries[key] for key in chosen], table, self._let_go)

    def _fitting(self, keys: Sequence[Key], payloads: Mapping[Key, PayloadPages]) -> list[Key]:
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
                pages = payloads[key].tiles
            else:
                continue
            if pages <= room:
                room -= pages
                chosen.append(key)
        return chosen

    def _origins(
        self,
        new: Sequence[Key],
        payloads: Mapping[Key, PayloadPages],
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
                origins[key] = self._host.add(key, payloads[key].tokens, payloads[key].tiles)

    def _bring(
        self,
        new: Sequence[Key],
        entries: Mapping[Key, Entry],
        origins: Mapping[Key, Entry | None],
        payloads: Mapping[Key, PayloadPages],
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
                fill = partial(self._stage, payloads[key], first, staged)
                moves.append(Move(self._staging.layer, range(first, staged), pages, fill))
            else:
                written = key not in payloads
                fill_kept = None if written else partial(self._keep, payloads[key], origin)
                moves.append(Move(self._kept_layer, origin.pages, pages, fill_kept))
        arrival = copy_layers(self._stream, moves, self._room.pool, gather_below=self._gather_below)
        self._staging.finish()
        for key in new:
            entries[key].arrival = arrival

    def _kept_layer(self, layer: int) -> Tensor:
        assert self._host is not None
        return self._host.pool[layer]

    def _stage(self, payload: PayloadPages, first: int, last: int, layer: int) -> None:
        payload.write(self._staging.array(layer)[None, first:last], range(layer, layer + 1))

    def _keep(self, payload: PayloadPages, entry: Entry, layer: int) -> None:
        assert self._host is not None
        if layer % _LAYERS_AT_ONCE == 0:
            self._host.write(entry, payload, range(layer, min(layer + _LAYERS_AT_ONCE, self._config.layers)))

    def _table(self, entries: Sequence[Entry]) -> MemoryTable:
        pages = [page for entry in entries for page in entry.pages]
        return MemoryTable(
            self._room.pool,
            upload(pages, self.device),
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
