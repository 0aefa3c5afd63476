"""Page-in on a device, timed: its bandwidth beside a pinned copy, both ways of copying, and what hides it.

`kernels/bench.py` puts these rows into its table.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle

import numpy as np
import torch
from torch import Tensor

from mnemos.attention.config import ModelConfig
from mnemos.attention.gpu.crossover import SIZES, crossover_of, measure
from mnemos.attention.gpu.host_pool import HostPool
from mnemos.attention.gpu.page_room import Key
from mnemos.attention.gpu.pool import DevicePool
from mnemos.attention.kernels.page_layout import PageLayout, tiles_of
from mnemos.attention.kernels.timing import Row, median_ms
from mnemos.attention.memory_codec import _KV_HEAD, _KV_MAGIC

BITS = 4


@dataclass(frozen=True, slots=True)
class Sizes:
    """Shapes of Qwen3-4B, and how much of everything; the defaults fill a large GPU."""

    layers: int = 36
    kv_heads: int = 8
    head_dim: int = 128
    hidden: int = 2560
    layer_weights: int = 39424  # columns of one product that is as large as all of a layer's
    prompt_tokens: tuple[int, ...] = (64, 512)
    memories: int = 16
    memory_tokens: int = 200
    copy_bytes: int = 1 << 29
    run_bytes: tuple[int, ...] = SIZES
    crossover_bytes: int = 1 << 23
    repeats: int = 20


TINY = Sizes(2, 2, 64, 32, 64, (3,), 2, 40, 1 << 16, (1024, 4096), 1 << 14, 1)


def rows(device: torch.device, sizes: Sizes | None = None) -> list[Row]:
    """The rows of the table; about 2 GiB of device memory and as much pinned host memory. Without `sizes`
    those are tiny where there is no CUDA device.
    """
    if sizes is None:
        sizes = Sizes() if device.type == "cuda" else TINY
    bench = PagingBench(device, sizes)
    return [*bench.page_in(), *bench.overlap(), *bench.crossover()]


class PagingBench:
    """Two sets of memories that take one another's place in a pool with room for one of them."""

    def __init__(self, device: torch.device, sizes: Sizes) -> None:
        self.device, self.sizes = device, sizes
        self._config = ModelConfig(
            name="shapes", architecture="qwen3", vocab_size=16, hidden_size=sizes.hidden, layers=sizes.layers,
            heads=4 * sizes.kv_heads, kv_heads=sizes.kv_heads, head_dim=sizes.head_dim, intermediate_size=64,
            rms_norm_eps=1e-6, rope_theta=1e6, max_positions=4096, tie_embeddings=True, bos_id=None,
            eos_ids=(0,),
        )  # fmt: skip
        self._payloads = {
            (str(half), str(index)): _random_payload(sizes, half * sizes.memories + index)
            for half in range(2)
            for index in range(sizes.memories)
        }
        self._sets = [[key for key in self._payloads if key[0] == half] for half in "01"]
        pages = sizes.memories * tiles_of(sizes.memory_tokens)
        layout = PageLayout(BITS, sizes.kv_heads, sizes.head_dim)
        self.bytes = sizes.layers * pages * layout.page_bytes  # of one set's pages
        payload_bytes = sum(len(self._payloads[key]) for key in self._sets[0])
        self._padding = f"{1 - payload_bytes / self.bytes:.0%} of the bytes are padding"
        source = torch.randint(0, 256, (sizes.copy_bytes,), dtype=torch.uint8)
        source = source.pin_memory() if device.type == "cuda" else source
        target = torch.empty(sizes.copy_bytes, dtype=torch.uint8, device=device)
        copy_ms = self._time(lambda: target.copy_(source, non_blocking=True))
        self.ceiling = sizes.copy_bytes / (copy_ms * 1e-3)  # bytes a second from pinned memory

    def page_in(self) -> list[Row]:
        """From pinned pages, from payloads, and the first layer alone."""
        shape = f"{self.sizes.memories} x {self.sizes.memory_tokens} tokens, int{BITS}"
        last = self.sizes.layers - 1
        kept, unkept = self._pool(host=True), self._pool(host=False)
        kept_ms = self._time(self._turn(kept, partial(_wait, layer=last)))
        row = partial(Row, shape=shape, bytes_moved=self.bytes, ceiling=self.ceiling)
        return [
            row(
                "page_in", median_ms=kept_ms, rival="a copy for each memory",
                rival_ms=self._copies_of_memories(kept), note=f"pinned pages; {self._padding}",
            ),
            row(
                "page_in", median_ms=self._time(self._turn(unkept, partial(_wait, layer=last))),
                note="from payloads: written to pages layer by layer",
            ),
            Row(
                "page_in", f"{shape}, layer 0", self._time(self._turn(kept, partial(_wait, layer=0))),
                self.bytes // self.sizes.layers, self.ceiling, note="until the first layer can be read",
            ),
        ]  # fmt: skip

    def overlap(self) -> list[Row]:
        """Each layer's copies behind the products of the layers before it."""
        sizes, pool, found = self.sizes, self._pool(host=True), []
        weights = [self._random(sizes.hidden, sizes.layer_weights) for _ in range(min(4, sizes.layers))]
        copies_ms = self._time(self._turn(pool, partial(_wait, layer=sizes.layers - 1)))
        first_ms = self._time(self._turn(pool, partial(_wait, layer=0)))
        for tokens in sizes.prompt_tokens:
            x = self._random(tokens, sizes.hidden)
            products = [partial(torch.matmul, x, weight) for weight in weights]
            compute_ms = self._time(partial(_layers, products, sizes.layers, None))
            both_ms = self._time(self._turn(pool, partial(_layers, products, sizes.layers)))
            hidden = max(compute_ms, copies_ms)
            found.append(
                Row(
                    "page_in", f"{sizes.layers} layers, a prompt of {tokens} tokens", both_ms, self.bytes,
                    self.ceiling, "the longer one alone", hidden,
                    f"products {compute_ms:.3f} ms, copies {copies_ms:.3f} ms, layer 0 {first_ms:.3f} ms, "
                    f"exposed {max(0.0, both_ms - hidden):.3f} ms",
                )
            )  # fmt: skip
        return found

    def crossover(self) -> list[Row]:
        sizes = self.sizes
        timed = measure(
            self.device, sizes.run_bytes, total_bytes=sizes.crossover_bytes, repeats=sizes.repeats
        )
        below = crossover_of(timed)
        return [
            Row(
                "page_gather", f"runs of {each.run_bytes} bytes", each.gather_ms,
                sizes.crossover_bytes // each.run_bytes * each.run_bytes, self.ceiling, "a copy for each run",
                each.copies_ms, f"shorter runs than {below} bytes are gathered",
            )
            for each in timed
        ]  # fmt: skip

    def _pool(self, *, host: bool) -> DevicePool:
        pinned = (
            HostPool(self._config, BITS, budget_bytes=2 * self.bytes, device=self.device) if host else None
        )
        return DevicePool(
            self._config, BITS, budget_bytes=self.bytes, device=self.device, host=pinned, gather_below=None
        )

    def _turn(self, pool: DevicePool, use: Callable[..., object]) -> Callable[[], object]:
        """A page-in of either set in turn, each of which finds the other one in its place.

        One at a time: what one left under way would hold up the next.
        """
        sets = cycle(self._sets)

        def turn() -> None:
            with pool.page_in(next(sets), self._fetch) as reads:
                use(reads.wait)

        return turn

    def _fetch(self, keys: Sequence[Key]) -> Mapping[Key, bytes]:
        return {key: self._payloads[key] for key in keys}

    def _copies_of_memories(self, pool: DevicePool) -> float:
        """One large copy for each memory, all layers at once, into a buffer."""
        each = self.bytes // self.sizes.memories
        assert pool.host is not None
        source = pool.host.pool.view(-1)[: each * self.sizes.memories].view(self.sizes.memories, each)
        target = torch.empty_like(source, device=self.device)

        def copies() -> None:
            for index in range(len(source)):
                target[index].copy_(source[index], non_blocking=True)

        return self._time(copies)

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device, dtype=torch.bfloat16)

    def _time(self, call: Callable[[], object]) -> float:
        return median_ms([call], self.device, self.sizes.repeats, in_graph=False)


def _wait(wait: Callable[[int], None], *, layer: int) -> None:
    wait(layer)


def _layers(
    products: Sequence[Callable[[], object]], layers: int, wait: Callable[[int], None] | None
) -> None:
    for layer in range(layers):
        if wait is not None:
            wait(layer)
        products[layer % len(products)]()


def _random_payload(sizes: Sizes, seed: int) -> bytes:
    """One span of random codes and scales."""
    layout = PageLayout(BITS, sizes.kv_heads, sizes.head_dim)
    head = _KV_HEAD.pack(_KV_MAGIC, BITS, sizes.layers, sizes.kv_heads, sizes.head_dim, 1)
    size = sizes.layers * sum(layout.part_bytes(sizes.memory_tokens))
    return head + struct.pack("<I", sizes.memory_tokens) + np.random.default_rng(seed).bytes(size)
