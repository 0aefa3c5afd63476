"""`python -m mnemos.attention.kernels.bench`: the kernels timed beside their rivals on this machine's GPU.

Ceilings are measured in the same run: a large copy in device memory, and one from pinned host memory. A share
is of the ceiling of the bus that the kernel is bound by. The JSON beside the table holds the same figures.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from mnemos.attention.kernels import dispatch
from mnemos.attention.kernels.memory_table import MemoryTable, plan_splits, table_of_payloads
from mnemos.attention.kernels.segments import SegmentKeys
from mnemos.attention.kernels.timing import Row, median_ms, table_lines
from mnemos.attention.kv import SpanKV
from mnemos.attention.memory_codec import TraceBits, encode_kv


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything; the defaults fill a large GPU."""

    copy_bytes: int = 1 << 30
    memory_tokens: int = 65536
    span_tokens: int = 205
    batches: tuple[int, ...] = (1, 8)
    route_tokens: tuple[int, ...] = (10_000_000, 100_000_000)
    chunks: int = 1_000_000
    pack_tokens: int = 4096
    pages: int = 4096
    page_bytes: int = 16384
    repeats: int = 50


TINY = Sizes(1 << 16, 70, 33, (1, 2), (500,), 65, 40, 5, 64, 2)
HEADS, KV_HEADS, DIM = 32, 8, 128  # Qwen3-4B


class Bench:
    """One run on one device."""

    def __init__(self, device: torch.device, sizes: Sizes) -> None:
        self.device, self.sizes = device, sizes
        source, target = (
            torch.randint(0, 256, (sizes.copy_bytes,), dtype=torch.uint8, device=device) for _ in range(2)
        )
        copy_ms = self._time([lambda: target.copy_(source)])
        self.copy = 2 * sizes.copy_bytes / (copy_ms * 1e-3)  # bytes a second, read and written
        host = self._pinned(torch.randint(0, 256, (sizes.copy_bytes,), dtype=torch.uint8))
        host_ms = self._time([lambda: target.copy_(host, non_blocking=True)], in_graph=False)
        self.host_copy = sizes.copy_bytes / (host_ms * 1e-3)

    def rows(self) -> Iterator[Row]:
        yield from self.split_kv_attention()
        yield self.lse_merge()
        yield from self.route_mass()
        yield self.route_msa()
        yield from self.quantize_pack()
        yield from self.page_gather()

    def split_kv_attention(self) -> Iterator[Row]:
        per_read = -(-self.sizes.memory_tokens // self.sizes.span_tokens)
        for batch in self.sizes.batches:
            tokens, layers = per_read * self.sizes.span_tokens, max(2, 4 // batch)
            q = torch.randn(batch, HEADS, DIM, device=self.device, dtype=torch.bfloat16)
            rival_ms = self._sdpa(q, tokens)
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
                    self._time(calls), moved, self.copy, "SDPA bf16", rival_ms,
                    "splits and their join",
                )  # fmt: skip
                del table

    def lse_merge(self) -> Row:
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
        return Row(
            "lse_merge", f"{rows} x {DIM}", self._time(calls), moved, self.copy, "torch, several launches",
            rival_ms, "bound by the launch",
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
                self._time(calls, repeats=repeats), moved, self.copy,
                note="an index larger than the caches",
            )  # fmt: skip

    def route_msa(self) -> Row:
        tokens, width = 32, KV_HEADS * DIM
        keys = torch.randn(self.sizes.chunks, width, device=self.device, dtype=torch.bfloat16)
        queries = [torch.randn(tokens, width, device=self.device, dtype=torch.bfloat16) for _ in range(2)]
        rival_ms = self._time([_bind(_product_and_maximum, q, keys) for q in queries])
        return Row(
            "route_msa", f"{tokens} tokens x {self.sizes.chunks} x {width} bf16",
            self._time([_bind(dispatch.route_msa, q, keys) for q in queries]),
            keys.nbytes + queries[0].nbytes + 4 * self.sizes.chunks, self.copy, "matmul, then amax", rival_ms,
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
                self.copy, "torch", rival_ms,
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
            self.host_copy, "a copy for each page", self._time([copies], in_graph=False),
            "share of the pinned copy",
        )  # fmt: skip
        index = places.to(self.device)
        table = device.view(2 * count, size)
        target = out.view(count, size)
        select = _bind(torch.index_select, table, 0, index, out=target)
        gather = _bind(dispatch.page_gather, device, pages, out)
        yield Row(
            "page_gather", f"{shape}, device", self._time([gather], in_graph=False), 2 * count * size,
            self.copy, "index_select", self._time([select], in_graph=False),
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

    def _sdpa(self, q: Tensor, tokens: int) -> float:
        shape = (len(q), KV_HEADS, tokens, DIM)
        sets = [
            [torch.randn(shape, device=self.device, dtype=torch.bfloat16) for _ in range(2)] for _ in range(2)
        ]
        calls = [
            _bind(functional.scaled_dot_product_attention, q[:, :, None], k, v, enable_gqa=True)
            for k, v in sets
        ]
        return self._time(calls)


def main(arguments: list[str] | None = None) -> int:
    """Print the table and write the JSON; 1 when there is no CUDA device to measure."""
    parser = argparse.ArgumentParser(prog="mnemos.attention.kernels.bench", description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("build/kernels.json"), help="where the figures go")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny sizes on any device: a test of this program"
    )
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available() and not options.tiny:
        print("No CUDA device here: nothing to measure.", file=sys.stderr)
        return 1
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    bench = Bench(device, TINY if options.tiny else Sizes())
    rows = list(bench.rows())
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else "CPU, torch's path: no figures of kernels"
    )
    print(f"{name}; torch {torch.__version__}")
    print(
        f"copy in memory {bench.copy / 1e9:.0f} GB/s, "
        f"from pinned host memory {bench.host_copy / 1e9:.1f} GB/s"
    )
    print("\n".join(table_lines(rows)))
    figures = {
        "device": name,
        "torch": torch.__version__,
        "copy_bytes_per_s": bench.copy,
        "host_copy_bytes_per_s": bench.host_copy,
        "rows": [row.as_json() for row in rows],
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def _product_and_maximum(queries: Tensor, keys: Tensor) -> Tensor:
    return (keys @ queries.T).amax(dim=1)


def _bind(function: Callable[..., object], *args: object, **named: object) -> Callable[[], object]:
    return lambda: function(*args, **named)


if __name__ == "__main__":
    sys.exit(main())
