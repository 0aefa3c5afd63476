"""Small memories and a stream that does nothing until somebody waits, for the tests of the pools."""

from collections.abc import Callable

import torch
from torch import Tensor

from mnemos.attention.config import ModelConfig
from mnemos.attention.gpu.device_reads import DeviceReads
from mnemos.attention.gpu.page_room import Key
from mnemos.attention.gpu.streams import Mark
from mnemos.attention.kernels.memory_table import table_of_payloads
from mnemos.attention.kv import SpanKV
from mnemos.attention.memory_codec import TraceBits, encode_kv

LAYERS, KV_HEADS, DIM = 5, 2, 64
CONFIG = ModelConfig(
    name="tiny",
    architecture="llama",
    vocab_size=16,
    hidden_size=4 * DIM,
    layers=LAYERS,
    heads=4,
    kv_heads=KV_HEADS,
    head_dim=DIM,
    intermediate_size=64,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    max_positions=512,
    tie_embeddings=True,
    bos_id=None,
    eos_ids=(0,),
)
PAGE_BYTES = KV_HEADS * (2 * 32 * DIM // 2 + 4 * DIM + 32 * 4 * 2)  # int4, of one layer
PAGE = LAYERS * PAGE_BYTES
SIZES = {"one": (1,), "two": (47, 33), "long": (130,), "even": (64,), "nine": (9,)}  # tokens of each span
PAGES = {"one": 1, "two": 4, "long": 5, "even": 2, "nine": 1}


def payload_of(name: str, bits: TraceBits = 4) -> bytes:
    torch.manual_seed(len(name) + ord(name[-1]))
    spans = [SpanKV(*(torch.randn(LAYERS, KV_HEADS, size, DIM) for _ in range(2))) for size in SIZES[name]]
    return encode_kv(spans, bits)


PAYLOADS: dict[Key, bytes] = {("a", name): payload_of(name) for name in SIZES}
PAYLOADS |= {("b", name): payload_of(name)[:-1] + b"b" for name in SIZES}  # another's, of the same sizes
EXPECTED = {key: table_of_payloads([payload]).pool for key, payload in PAYLOADS.items()}


def pages_of(reads: DeviceReads, index: int) -> Tensor:
    """What the pool holds of one of the memories that are read, `[layers, pages, page_bytes]`."""
    starts = reads.table.starts
    spans = [span for span, owner in enumerate(reads.owners) if owner == index]
    return reads.table.pool[:, reads.table.pages[starts[spans[0]] : starts[spans[-1] + 1]].long()]


class DeferredStream:
    """Work waits until it has to be done, as late as a device may do it."""

    def __init__(self) -> None:
        self.queue: list[Callable[[], None]] = []
        self.ran = 0

    def submit(self, work: Callable[[], None]) -> None:
        self.queue.append(work)

    def run_to(self, place: int) -> None:
        while self.ran < place:
            self.queue[self.ran]()
            self.ran += 1

    def mark(self) -> Mark:
        return Place(self, len(self.queue))

    def fence(self) -> Mark | None:
        return Place(self, 0)

    def follow(self, mark: Mark) -> None:
        pass


class Place:
    """A place in the queue."""

    def __init__(self, stream: DeferredStream, place: int) -> None:
        self._stream, self._place = stream, place

    def wait(self) -> None:
        self._stream.run_to(self._place)

    def synchronize(self) -> None:
        self._stream.run_to(self._place)

    def done(self) -> bool:
        return self._stream.ran >= self._place
