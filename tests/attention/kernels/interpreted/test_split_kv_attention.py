"""Split attention in Triton's interpreter against its naive twin."""

import dataclasses

import pytest
import torch

from mnemos.attention.kernels.dispatch import forced, split_kv_attention
from mnemos.attention.kernels.memory_table import MemoryTable, plan_splits, table_of_payloads
from mnemos.attention.kv import SpanKV
from mnemos.attention.memory_codec import encode_kv

LAYERS = 2


def table_of(bits: int, kv_heads: int, dim: int, sizes: tuple[int, ...]) -> MemoryTable:
    torch.manual_seed(dim + bits)
    spans = [
        SpanKV(torch.randn(LAYERS, kv_heads, size, dim) * 2 + 1, torch.randn(LAYERS, kv_heads, size, dim))
        for size in sizes
    ]
    payloads = [encode_kv([span], bits) for span in spans]
    table = table_of_payloads(payloads)
    if bits == 16:  # the interpreter multiplies bf16 wrongly: the same numbers as fp16
        pool = table.pool.view(torch.bfloat16).half().view(torch.uint8)
        table = dataclasses.replace(table, pool=pool, raw_dtype=torch.float16)
    return table


@pytest.mark.parametrize(
    ("bits", "group", "dim", "sizes"),
    [
        (4, 3, 64, (1, 63, 65, 97)),
        (4, 1, 128, (31, 33)),
        (4, 4, 96, (47, 40)),
        (4, 2, 80, (65,)),
        (4, 16, 256, (33,)),
        (8, 3, 64, (1, 63, 65, 97)),
        (8, 5, 96, (47,)),
        (8, 2, 80, (65,)),
        (8, 4, 128, (33,)),
        (16, 3, 64, (1, 63, 65, 97)),
        (16, 2, 80, (65,)),
        (16, 4, 128, (33,)),
    ],
)
def test_equals_the_naive_twin(
    bits: int, group: int, dim: int, sizes: tuple[int, ...], poisoned: None
) -> None:
    kv_heads = 2
    table = table_of(bits, kv_heads, dim, sizes)
    reads = [tuple(range(len(sizes))), (len(sizes) - 1,)]
    plan = plan_splits(table, reads, tiles_per_split=2)
    q = torch.randn(2, kv_heads * group, dim)
    bias = torch.linspace(-1, 1, len(sizes))
    results = {}
    for path in ("naive", "triton"):
        with forced(path):
            results[path] = split_kv_attention(q, table, plan, 1, dim**-0.5 / 0.9, bias)
    for name, ours, twin in zip(("out", "lse"), results["triton"], results["naive"], strict=True):
        error = (ours - twin).norm() / twin.norm()
        assert error < 2e-3, f"{name}: {error}"


def test_without_a_bias(poisoned: None) -> None:
    table = table_of(4, 1, 64, (65,))
    plan = plan_splits(table, [[0]])
    q = torch.randn(1, 3, 64, dtype=torch.float16)
    with forced("triton"):
        out, lse = split_kv_attention(q, table, plan, 0, 0.125)
    with forced("naive"):
        twin, twin_lse = split_kv_attention(q, table, plan, 0, 0.125)
    assert torch.allclose(out, twin, atol=2e-3)
    assert torch.allclose(lse, twin_lse, atol=2e-3)
