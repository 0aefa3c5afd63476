"""Rows of the table for the kernels that read memories, route, quantise and gather."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from mnemos.attention.kernels import dispatch
from mnemos.attention.kernels.ceilings import Ceilings
from mnemos.attention.kernels.flex_rival import flex_decode, flex_ms
from mnemos.attention.kernels.memory_table import MemoryTable, plan_splits, table_of_payloads
from mnemos.attention.kernels.segments import SegmentKeys
from mnemos.attention.kernels.timing import Row, median_ms
from mnemos.attention.kv import SpanKV
from mnemos.attention.memory_codec import TraceBits, encode_kv


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything; the defaults fill a large GPU."""

    memory_tokens: int = 65536
    span_tokens: int = 205
    batches: tuple[int, ...] = (1, 8)
    route_tokens: tuple[int, ...] = (10_000_000, 100_000_000)
    chunks: int = 1_000_000
    pack_tokens: int = 4096
    pages: int = 4096
    page_bytes: int = 16384
    repeats: int = 50


TINY = Sizes(70, 33, (1, 2), (500,), 65, 40, 5, 64, 2)
HEADS, KV_HEADS, DIM = 32, 8, 128  # Qwen3-4B


class Bench:
    """One run on one device."""

    def __init__(self, device: torch.device, sizes: Sizes, ceilings: Ceilings) -> None:
        self.device, self.sizes, self.ceilings = device, sizes, ceilings

    def sections(self) -> dict[str, Callable[[], Iterator[Row]]]:
        """Each kernel's rows, to be measured one section at a time."""
        return {
            "split_kv_attention": self.split_kv_attention,
            "lse_merge": self.lse_merge,
            "route_mass": self.route_mass,
            "route_msa": self.route_msa,
            "quantize_pack": self.quantize_pack,
            "page_gather": self.page_gather,
        }

    def split_kv_attention(self) -> Iterator[Row]:
        per_read = -(-self.sizes.memory_tokens // self.sizes.span_tokens)
        for batch in self.sizes.batches:
            tokens, layers = per_read * self.sizes.span_tokens, max(2, 4 // batch)
            q = torch.randn(batch, HEADS, DIM, device=self.device, dtype=torch.bfloat16)
            rival_ms, others = self._rivals(q, tokens)
            for bits in (4, 8, 16):
                table = self._table(bits, per_read * batch, layers)
                reads = [range(i * per_read, (i + 1) * per_read) for i in range(batch)]
                plan = plan_splits(table, reads)
                read = sum(sum(table.part_bytes(span)) for spans in reads for span in spans) // layers
                moved = read + q.nbytes + 4 * q.numel() + 4 * batch * HEADS
                calls = [self._split_call(q, table, plan, layer) for layer in range(layers)]
                shape = f"int{bits}" if bits < 16 else "bf16"
                yield Row(
                    "split_kv_attention", f"{shape} {batch} x {tokens} x {KV_HEADS} x {DIM}",
                    self._time(calls), moved, self.ceilings.copy, "SDPA bf16", rival_ms,
                    "splits and their join", other_rivals=others,
                )  # fmt: skip
                del table

    def lse_merge(self) -> Iterator[Row]:
        rows = 8 * HEADS
        sets = []
        for _ in range(4):
            parts = [torch.randn(rows, DIM, device=self.device) for _ in range(2)]
            lse = [torch.randn(rows, device=self.device) for _ in range(2)]
            sets.append((parts[0], lse[0], parts[1].bfloat16(), lse[1]))
        moved = rows * (DIM * (4 + 2 + 2) + 8)
        calls = [_bind(dispatch.lse_merge, *inputs, 0.9) for inputs in sets]
        with dispatch.forced("naive"):
            rival_ms = self._time(calls)
        yield Row(
            "lse_merge", f"{rows} x {DIM}", self._time(calls), moved, self.ceilings.copy,
            "torch, several launches", rival_ms, "bound by the launch",
        )  # fmt: skip

    def route_mass(self) -> Iterator[Row]:
        heads, dim, rows, length = 2, 64, 32, 100
        for tokens in self.sizes.route_tokens:
            keys = torch.randint(-127, 128, (tokens, heads, dim), dtype=torch.int8, device=self.device)
            count = tokens // length
            starts = torch.arange(0, tokens + 1, length, device=self.device)
            owner = torch.arange(count, dtype=torch.int32, device=self.device) // 2
            scales = torch.rand(-(-count // 2), heads, dim, device=self.device).half() * 0.02
            segments = SegmentKeys(keys, scales, starts, owner)
            queries = [torch.randn(heads, rows, dim, device=self.device) for _ in range(2)]
            calls = [_bind(dispatch.route_mass, q, segments, dim**-0.5) for q in queries]
            moved = keys.nbytes + scales.nbytes + 4 * heads * rows * count
            repeats = max(2, self.sizes.repeats // 5)
            yield Row(
                "route_mass", f"{tokens} x {heads} x {dim}, {rows} rows",
                self._time(calls, repeats=repeats), moved, self.ceilings.copy,
                note="an index larger than the caches",
            )  # fmt: skip

    def route_msa(self) -> Iterator[Row]:
        tokens, width = 32, KV_HEADS * DIM
        keys = torch.randn(self.sizes.chunks, width, device=self.device, dtype=torch.bfloat16)
        queries = [torch.randn(tokens, width, device=self.device, dtype=torch.bfloat16) for _ in range(2)]
        rival_ms = self._time([_bind(_product_and_maximum, q, keys) for q in queries])
        yield Row(
            "route_msa", f"{tokens} tokens x {self.sizes.chunks} x {width} bf16",
            self._time([_bind(dispatch.route_msa, q, keys) for q in queries]),
            keys.nbytes + queries[0].nbytes + 4 * self.sizes.chunks, self.ceilings.copy,
            "matmul, then amax", rival_ms,
        )  # fmt: skip

    def quantize_pack(self) -> Iterator[Row]:
        shape = (KV_HEADS * 4, self.sizes.pack_tokens, DIM)
        sets = [
            [torch.randn(shape, device=self.device, dtype=torch.bfloat16) for _ in range(2)] for _ in range(3)
        ]
        widths: tuple[Literal[4, 8], ...] = (4, 8)
        k, v = sets[0]
        for bits in widths:
            calls = [_bind(dispatch.quantize_pack, *pair, bits) for pair in sets]
            moved = k.nbytes + v.nbytes + sum(part.nbytes for part in dispatch.quantize_pack(k, v, bits))
            with dispatch.forced("naive"):
                rival_ms = self._time(calls, in_graph=False)
            yield Row(
                "quantize_pack", f"int{bits} of {' x '.join(map(str, shape))} bf16", self._time(calls), moved,
                self.ceilings.copy, "torch", rival_ms,
            )  # fmt: skip

    def page_gather(self) -> Iterator[Row]:
        count, size = self.sizes.pages, self.sizes.page_bytes
        source = torch.randint(0, 256, (2 * count * size,), dtype=torch.uint8)
        places = torch.randperm(2 * count)[:count]
        pages = torch.stack([places * size, torch.arange(count) * size, torch.full((count,), size)], dim=1)
        out = torch.empty(count * size, dtype=torch.uint8, device=self.device)
        pinned, device = self._pinned(source), source.to(self.device)

        def copies() -> None:
            for start, end, length in pages.tolist():
                out[end : end + length].copy_(pinned[start : start + length], non_blocking=True)

        shape = f"{count} pages of {size} bytes"
        gather = _bind(dispatch.page_gather, pinned, pages, out)
        yield Row(
            "page_gather", f"{shape}, pinned host", self._time([gather], in_graph=False), count * size,
            self.ceilings.host_copy, "cudaMemcpyAsync a page", self._time([copies], in_graph=False),
            "share of the pinned copy",
        )  # fmt: skip
        index = places.to(self.device)
        table = device.view(2 * count, size)
        target = out.view(count, size)
        select = _bind(torch.index_select, table, 0, index, out=target)
        gather = _bind(dispatch.page_gather, device, pages, out)
        yield Row(
            "page_gather", f"{shape}, device", self._time([gather], in_graph=False), 2 * count * size,
            self.ceilings.copy, "index_select", self._time([select], in_graph=False),
            "with the list's way to the device",
        )  # fmt: skip

    def _time(
        self, calls: list[Callable[[], object]], *, in_graph: bool = True, repeats: int | None = None
    ) -> float:
        return median_ms(calls, self.device, repeats or self.sizes.repeats, in_graph=in_graph)

    def _pinned(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def _table(self, bits: TraceBits, spans: int, layers: int) -> MemoryTable:
        """Sixteen random memories over and over: other addresses, so other bytes for the caches."""
        tokens = self.sizes.span_tokens
        payloads = [
            encode_kv([SpanKV(*(torch.randn(layers, KV_HEADS, tokens, DIM) for _ in range(2)))], bits)
            for _ in range(min(16, spans))
        ]
        return table_of_payloads([payloads[i % len(payloads)] for i in range(spans)], device=self.device)

    def _split_call(self, q: Tensor, table: MemoryTable, plan: object, layer: int) -> Callable[[], object]:
        return _bind(dispatch.split_kv_attention, q, table, plan, layer, DIM**-0.5)

    def _rivals(self, q: Tensor, tokens: int) -> tuple[float, tuple[tuple[str, float], ...]]:
        """SDPA's milliseconds over as many tokens in bf16, and those of others."""
        shape = (len(q), KV_HEADS, tokens, DIM)
        sets = [
            [torch.randn(shape, device=self.device, dtype=torch.bfloat16) for _ in range(2)] for _ in range(2)
        ]
        rows = q[:, :, None]
        sdpa_ms = self._time(
            [_bind(functional.scaled_dot_product_attention, rows, k, v, enable_gqa=True) for k, v in sets]
        )
        calls = [_bind(flex_decode, rows, k, v) for k, v in sets]
        return sdpa_ms, flex_ms(lambda: calls, self.device, self.sizes.repeats)


def _product_and_maximum(queries: Tensor, keys: Tensor) -> Tensor:
    return (keys @ queries.T).amax(dim=1)


def _bind(function: Callable[..., object], *args: object, **named: object) -> Callable[[], object]:
    return lambda: function(*args, **named)
