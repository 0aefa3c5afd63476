"""What changes from token to token, gathered on the host and copied to the device in place."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from mnemos.attention.gpu.cache import DeviceCache
from mnemos.attention.gpu.step import StepBuffers
from mnemos.attention.gpu.step_memory import Wanted
from mnemos.attention.kernels.working_rows import FIELDS

if TYPE_CHECKING:
    from mnemos.attention.gpu.decoder import DeviceDecoder


class StepInputs:
    """Host buffers of one bucket, pinned where there is a CUDA device to copy to."""

    def __init__(self, decoder: "DeviceDecoder", rows: int, reads: int) -> None:
        self._decoder = decoder
        on_cuda = decoder.device.type == "cuda"
        kinds, dim = len(decoder.rotaries), decoder.config.head_dim
        self._fields = torch.zeros(FIELDS, rows, dtype=torch.int64, pin_memory=on_cuda)
        self._cis = torch.zeros(kinds, rows + reads, dim, pin_memory=on_cuda)
        self._rows, self._reads = rows, reads
        self._queries: list[tuple[int, int]] = []
        self._source = torch.zeros(reads, dtype=torch.int32)
        self._is_new = False
        self._inverse = torch.ones(rows + reads, 1)  # of the temperature that each query asks at
        self._copied = torch.cuda.Event() if on_cuda else None  # type: ignore[no-untyped-call]

    def read_for(self, wanted: Wanted) -> None:
        """From now on these queries are asked of memories."""
        self._queries = wanted.queries
        self._source.zero_()
        self._inverse.fill_(1.0)
        for index, (row, _) in enumerate(self._queries):
            self._source[index] = row
            self._inverse[self._rows + index] = 1.0 / wanted.temperatures[row]
        self._is_new = True

    def fill(self, buffers: StepBuffers, tokens: Sequence[int], caches: Sequence[DeviceCache]) -> None:
        """The inputs of one step into `buffers`; rows behind the last one pad the batch."""
        if self._copied is not None:
            self._copied.synchronize()  # the last step's copies, long done when its token was asked for
        window = self._decoder.window or 0
        fields = [[token, *_fields_of(cache, window)] for token, cache in zip(tokens, caches, strict=True)]
        self._fields.zero_()
        self._fields[:, : len(fields)] = torch.tensor(fields, dtype=torch.int64).T
        positions = [cache.next_position for cache in caches]
        self._turn(positions)
        buffers.working.fields.copy_(self._fields, non_blocking=True)
        buffers.cis.copy_(self._cis, non_blocking=True)
        if self._is_new:
            buffers.source.copy_(self._source)
            self._is_new = False
        buffers.working.buffers[:] = [
            *((cache.k, cache.v) for cache in caches),
            *([None] * (self._rows - len(caches))),
        ]
        if self._copied is not None:
            self._copied.record()

    def _turn(self, positions: Sequence[int]) -> None:
        """Cosines and sines of each row's place, and of the place that each query to memories asks from."""
        asked = [positions[row] - offset for row, offset in self._queries]
        padding = [0] * (self._rows - len(positions))
        places = torch.tensor([*positions, *padding, *asked, *([0] * (self._reads - len(asked)))])
        for kind, rotary in enumerate(self._decoder.host_rotaries):
            table = torch.view_as_real(rotary.span(0, int(places.max()) + 1)).flatten(-2)
            torch.index_select(table, 0, places, out=self._cis[kind])
        if self._reads:
            self._cis.mul_(self._inverse)


def _fields_of(cache: DeviceCache, window: int) -> list[int]:
    """Of one row, all but the token, in the order of `working_rows`."""
    slot = cache.held(cache.length)
    first_prefix = first_working = 0
    if window and cache.next_position >= window:
        first_prefix = min(cache.next_position + 1 - window, cache.memory_start)
        first_working = max(slot + 1 - window, 0)
    k, v = cache.k, cache.v
    return [
        slot, slot + 1, cache.memory_start, first_prefix, first_working,
        k.data_ptr(), v.data_ptr(), k.shape[2],
    ]  # fmt: skip
