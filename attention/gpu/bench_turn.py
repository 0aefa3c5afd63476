"""Whole turns on a device, timed: a model of Qwen3-4B's shapes with random weights, and random memories.

Its rows go into the table of `mnemos.attention.kernels.bench`.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from mnemos.attention.config import ModelConfig, layer_shapes
from mnemos.attention.decoder import Collect
from mnemos.attention.gpu.cache import DeviceCache
from mnemos.attention.gpu.decoder import DeviceDecoder
from mnemos.attention.gpu.host_pool import HostPool
from mnemos.attention.gpu.pool import DevicePool
from mnemos.attention.gpu.reads import PagedSpan
from mnemos.attention.kernels.dispatch import route_mass
from mnemos.attention.kernels.page_layout import PageLayout, tiles_of
from mnemos.attention.kernels.segments import SegmentKeys, segment_mass
from mnemos.attention.kernels.timing import Row, median_ms
from mnemos.attention.kv import SpanKV
from mnemos.attention.memory_codec import encode_kv
from mnemos.attention.sampling import best_token
from mnemos.attention.weights import LayerWeights, Weights

QWEN3_4B = ModelConfig(
    name="qwen3-4b", architecture="qwen3", vocab_size=151936, hidden_size=2560, layers=36, heads=32,
    kv_heads=8, head_dim=128, intermediate_size=9728, rms_norm_eps=1e-6, rope_theta=1e6, max_positions=32768,
    tie_embeddings=True, bos_id=None, eos_ids=(151645,), qk_norm=True,
)  # fmt: skip
_BITS: Literal[4] = 4


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything; the defaults are those of the figures that the design asks for."""

    config: ModelConfig = QWEN3_4B
    dtype: torch.dtype = torch.bfloat16
    memories: int = 16
    memory_tokens: int = 200
    question_tokens: int = 32
    working_tokens: int = 512
    batch: int = 8
    decoded: int = 32
    route_tokens: int = 100_000_000
    segment_tokens: int = 200
    routed: int = 8  # memories paged in for a query over all of them
    copy_bytes: int = 1 << 30
    repeats: int = 15


TINY = Sizes(
    replace(
        QWEN3_4B, vocab_size=64, hidden_size=64, layers=2, heads=4, kv_heads=2, head_dim=64,
        intermediate_size=64, max_positions=512,
    ),
    torch.float32, 3, 40, 5, 12, 2, 2, 2000, 40, 2, 1 << 12, 2,
)  # fmt: skip


def rows(device: torch.device, sizes: Sizes | None = None) -> list[Row]:
    """First tokens behind paged memories and behind their text, steps with and without them, and a query to a
    memory of 100 M tokens. Tiny sizes where there is no CUDA device.
    """
    sizes = sizes or (Sizes() if device.type == "cuda" else TINY)
    return _Turns(device, sizes).rows()


class _Turns:
    def __init__(self, device: torch.device, sizes: Sizes) -> None:
        torch.manual_seed(0)
        config = sizes.config
        self._device, self._sizes = device, sizes
        self._decoder = DeviceDecoder(config, _weights(config, sizes.dtype), dtype=sizes.dtype, device=device)
        page_bytes = config.layers * PageLayout(_BITS, config.kv_heads, config.head_dim).page_bytes
        set_bytes = sizes.memories * tiles_of(sizes.memory_tokens) * page_bytes
        host = HostPool(config, _BITS, budget_bytes=2 * set_bytes, device=device)
        # Room for one of two sets of memories: each leaves for the other, and stays in host memory.
        self._pool = DevicePool(config, _BITS, budget_bytes=set_bytes, device=device, host=host)
        self._turn = 0
        shape = (config.layers, config.kv_heads, sizes.memory_tokens, config.head_dim)
        drawn = [encode_kv([SpanKV(torch.randn(shape), torch.randn(shape))], _BITS) for _ in range(2)]
        self._payloads = {("bench", str(i)): drawn[i % 2] for i in range(2 * sizes.memories)}
        self._payload_bytes = len(drawn[0])
        source, target = (
            torch.randint(0, 256, (sizes.copy_bytes,), dtype=torch.uint8, device=device) for _ in range(2)
        )
        self._copy = 2 * sizes.copy_bytes / (self._median([lambda: target.copy_(source)]) * 1e-3)

    def rows(self) -> list[Row]:
        return [self.first_token(), *self.steps(), self.from_all()]

    def first_token(self) -> Row:
        """Memories in pinned host memory, none on the device, against their text read again."""
        sizes = self._sizes
        question = _tokens(sizes.question_tokens, sizes.config)
        text = _tokens(sizes.memories * sizes.memory_tokens + sizes.question_tokens, sizes.config)

        def paged() -> None:
            self._answer(self._other_set(), question)

        def read_again() -> None:
            cache = self._decoder.new_cache(len(text))
            best_token(self._decoder.forward(text, cache))

        return Row(
            "first token", f"{sizes.memories} memories x {sizes.memory_tokens}, question of {len(question)}",
            self._wall(paged), self._payload_bytes * sizes.memories, self._copy, "their text read again",
            self._wall(read_again), "from pinned host memory; as a share of the device's copy",
        )  # fmt: skip

    def steps(self) -> list[Row]:
        """One token of one conversation and of several, with memories; the rival is the same without."""
        found = []
        for batch in (1, self._sizes.batch):
            with_memories, without = (self._steps(batch, keys) for keys in (self._other_set(), []))
            weights = sum(
                part.weight.nbytes
                for layer in self._decoder.layers
                for part in (layer.qkv, layer.o, layer.gate_up, layer.down)
            )
            moved = weights + self._decoder.lm_head.weight.nbytes
            moved += batch * self._payload_bytes * self._sizes.memories
            found.append(
                Row(
                    "decode step", f"{batch} x {self._sizes.memories} memories x {self._sizes.memory_tokens}",
                    with_memories, moved, self._copy, "without memories", without,
                    "the host's part and the token's way to it included",
                )
            )  # fmt: skip
        return found

    def from_all(self) -> Row:
        """From a question to its first token, all token keys of a large memory scored; the median."""
        sizes, config = self._sizes, self._sizes.config
        heads, dim = 2, config.head_dim
        tokens = sizes.route_tokens // sizes.segment_tokens * sizes.segment_tokens
        count = tokens // sizes.segment_tokens
        keys = torch.empty(tokens, heads, dim, dtype=torch.int8, device=self._device).random_(-127, 128)
        segments = SegmentKeys(
            keys,
            torch.rand(count, heads, dim, device=self._device).half() * 0.02,
            torch.arange(0, tokens + 1, sizes.segment_tokens, device=self._device),
            torch.arange(count, dtype=torch.int32, device=self._device),
        )
        question = _tokens(sizes.question_tokens, config)
        layer, group = int(config.layers * 0.6), config.heads // config.kv_heads

        def ask() -> None:
            cache = self._decoder.new_cache(len(question))
            collect = Collect(query_layers=(layer,))
            self._decoder.probe(question, cache, collect)
            asked = torch.stack([collect.queries[layer][head * group] for head in range(heads)])
            lse = route_mass(asked.to(self._device), segments, dim**-0.5)
            best = segment_mass(lse, [len(question)] * heads).topk(sizes.routed).indices.tolist()
            names = self._other_set()
            self._answer([names[index % len(names)] for index, _ in enumerate(best)], question)

        return Row(
            "query to first token", f"{tokens} memory tokens x {heads} x {dim} resident",
            self._wall(ask), segments.keys.nbytes, self._copy,
            note=f"{sizes.routed} memories paged in from pinned host memory",
        )  # fmt: skip

    def _answer(self, keys: Sequence[tuple[str, str]], question: Sequence[int]) -> None:
        cache = self._context(keys, len(question))
        best_token(self._decoder.forward(question, cache))
        cache.zero_()

    def _context(self, keys: Sequence[tuple[str, str]], room: int) -> DeviceCache:
        cache = self._decoder.new_cache(len(keys) * self._sizes.memory_tokens + room)
        if keys:
            reads = self._pool.page_in(keys, lambda wanted: {key: self._payloads[key] for key in wanted})
            if len(reads.keys) < len(keys):
                raise RuntimeError(f"the device has room for {len(reads.keys)} of {len(keys)} memories")
            spans = [PagedSpan(reads, index) for index in range(len(reads.owners))]
            cache.page_in(spans, temperature=0.8, mass_scale=0.9)
        return cache

    def _steps(self, batch: int, keys: Sequence[tuple[str, str]]) -> float:
        """Milliseconds a step."""
        sizes = self._sizes
        prompt = _tokens(sizes.working_tokens, sizes.config)
        caches = [self._context(keys, sizes.working_tokens + 4 * sizes.decoded) for _ in range(batch)]
        for cache in caches:
            self._decoder.prefill(prompt, cache)
        starts = [(cache.length, cache.next_position) for cache in caches]

        def decode() -> None:
            for cache, start in zip(caches, starts, strict=True):
                cache.truncate(*start)
            tokens = [1] * batch
            for _ in range(sizes.decoded):
                logits = self._decoder.loop.step(tokens, caches)
                tokens = [best_token(row) for row in logits]

        ms = self._wall(decode) / sizes.decoded
        for cache in caches:
            cache.zero_()
        return ms

    def _other_set(self) -> list[tuple[str, str]]:
        """Keys of the memories that were not used last: they have left the device."""
        self._turn = 1 - self._turn
        first = self._turn * self._sizes.memories
        return list(self._payloads)[first : first + self._sizes.memories]

    def _median(self, calls: list[Callable[[], object]]) -> float:
        return median_ms(calls, self._device, self._sizes.repeats)

    def _wall(self, call: Callable[[], object]) -> float:
        """Median milliseconds by the clock on the wall, after two runs to warm up."""
        times = []
        for index in range(self._sizes.repeats + 2):
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            started = time.perf_counter()
            call()
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            if index > 1:
                times.append((time.perf_counter() - started) * 1e3)
        return statistics.median(times)


def _weights(config: ModelConfig, dtype: torch.dtype) -> Weights:
    """One random layer, as all of them: each has its own copy on the device."""

    def drawn(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, dtype=dtype).mul_(shape[-1] ** -0.5)

    layer = LayerWeights(**{name: drawn(shape) for name, shape in layer_shapes(config).items()})
    embed = drawn((config.vocab_size, config.hidden_size))
    return Weights(embed, torch.ones(config.hidden_size, dtype=dtype), embed, [layer] * config.layers)


def _tokens(count: int, config: ModelConfig) -> list[int]:
    return torch.randint(0, config.vocab_size, (count,)).tolist()
