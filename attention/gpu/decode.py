"""The decode loop: a batch of conversations, one token each, over buffers and graphs of a few sizes.

A bucket is a size of batch and of what it reads of memories, rounded up to powers of two; each has buffers
of its own and, on CUDA, a captured graph. Between two tokens a few numbers of each row go to the device, in
one copy of each kind. What memories are read is written there when it changes. Nothing waits for the device
but who asks for the logits.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mnemos.attention.gpu.cache import DeviceCache
from mnemos.attention.gpu.captured import Capturing, Step
from mnemos.attention.gpu.step import StepBuffers, make_buffers, run_step
from mnemos.attention.gpu.step_inputs import StepInputs
from mnemos.attention.gpu.step_memory import StepMemory, Wanted

if TYPE_CHECKING:
    from mnemos.attention.gpu.decoder import DeviceDecoder

_MOST_BUCKETS = 16  # the least recently used go first
_LEAST_SPLITS = 64
_LEAST_TILES = 64


class Bucket(NamedTuple):
    """Sizes that a step is made for, and the pool that it reads; without memories all but the first are 0."""

    rows: int
    reads: int = 0  # queries to memories: of each row one for each place that its memories are moved by
    splits: int = 0
    tiles: int = 0
    pool: tuple[int, ...] = ()  # address, shape, bits: all of it that a captured graph knows


@dataclass(slots=True)
class _Made:
    buffers: StepBuffers
    inputs: StepInputs
    run: Step | None = None  # once its buffers were filled
    reads: tuple[int, ...] = ()  # serials of the read sets that the memory buffers hold
    wanted: Wanted | None = None


class DecodeLoop:
    """Steps of one decoder, one at a time."""

    def __init__(self, decoder: "DeviceDecoder", make_runner: Callable[[Step], Step] | None = None) -> None:
        self._decoder = decoder
        self._make_runner = make_runner or Capturing(decoder.device)
        self._made: OrderedDict[Bucket, _Made] = OrderedDict()
        self._lock = RLock()

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """Those at hand, the one used last at the end."""
        return tuple(self._made)

    @torch.inference_mode()
    def step(self, tokens: Sequence[int], caches: Sequence[DeviceCache]) -> Tensor:
        """Append one token to each cache; logits `[rows, vocab]` in fp32, on the device.

        Raises `ContextOverflowError` when a token does not fit its cache; no cache has changed then.
        ValueError when two rows share a cache.
        """
        if len({id(cache) for cache in caches}) != len(caches) or len(tokens) != len(caches):
            raise ValueError("each row of a batch has one token and a cache of its own")
        for cache in caches:
            cache.reserve(1)
        found = torch.empty(len(tokens), self._decoder.config.vocab_size, device=self._decoder.device)
        with self._lock:
            for rows in _by_pool(caches):
                logits = self._run([tokens[row] for row in rows], [caches[row] for row in rows])
                if len(rows) == len(tokens):
                    found.copy_(logits)
                else:
                    found[torch.tensor(rows, device=found.device)] = logits
        for cache in caches:
            cache.advance(1)
        return found

    def forget(self, serial: int) -> None:
        """Let go of a read set that nobody reads any more, and of its pool."""
        with self._lock:
            for made in self._made.values():
                if serial in made.reads:
                    made.reads, made.wanted = (), None
                    if made.buffers.memory is not None:
                        made.buffers.memory.clear()

    def _run(self, tokens: Sequence[int], caches: Sequence[DeviceCache]) -> Tensor:
        """The step's logits, in buffers that the next one overwrites."""
        sets = [cache.reads for cache in caches]
        key = tuple(0 if each is None else each.serial for each in sets)
        wanted = self._wanted(key, caches)
        bucket = _bucket(len(tokens), wanted)
        made = self._made.get(bucket) or self._make(bucket)
        self._made.move_to_end(bucket)
        memory = made.buffers.memory
        if memory is not None and wanted is not None and made.reads != key:
            memory.fill(wanted)
            made.reads, made.wanted = key, wanted
            made.inputs.read_for(wanted)
        made.inputs.fill(made.buffers, tokens, caches)
        if made.run is None:
            made.run = self._make_runner(partial(run_step, self._decoder, made.buffers))
        made.run()
        return made.buffers.logits[: len(tokens)]

    def _wanted(self, key: tuple[int, ...], caches: Sequence[DeviceCache]) -> Wanted | None:
        if not any(key):
            return None
        for made in self._made.values():
            if made.reads == key:
                return made.wanted
        for cache in caches:
            cache.wait_for_reads()
        return Wanted([cache.reads for cache in caches])

    def _make(self, bucket: Bucket) -> _Made:
        while len(self._made) >= _MOST_BUCKETS:
            self._made.popitem(last=False)
        decoder = self._decoder
        memory = None
        if bucket.reads:
            memory = StepMemory(bucket.rows, bucket.reads, bucket.splits, bucket.tiles, decoder.device)
        buffers = make_buffers(decoder, bucket.rows, bucket.reads, memory)
        made = self._made[bucket] = _Made(buffers, StepInputs(decoder, bucket.rows, bucket.reads))
        return made


def _bucket(rows: int, wanted: Wanted | None) -> Bucket:
    rows = _power_of_two(rows)
    if wanted is None:
        return Bucket(rows)
    return Bucket(
        rows,
        max(rows, _power_of_two(len(wanted.queries))),
        max(_LEAST_SPLITS, _power_of_two(len(wanted.plan.work))),
        max(_LEAST_TILES, _power_of_two(len(wanted.table.pages))),
        (wanted.table.pool.data_ptr(), *wanted.table.pool.shape, wanted.table.bits),
    )


def _by_pool(caches: Sequence[DeviceCache]) -> list[list[int]]:
    """Rows that can share a launch: those that read one pool, and with them those that read none."""
    groups: dict[int, list[int]] = {}
    for row, cache in enumerate(caches):
        groups.setdefault(0 if cache.reads is None else cache.reads.pool, []).append(row)
    if len(groups) > 1 and 0 in groups:
        without = groups.pop(0)
        first = next(iter(groups))
        groups[first] = sorted([*groups[first], *without])
    return list(groups.values())


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()
