"""Split attention in Triton's interpreter against its naive twin."""

import dataclasses

import pytest
import torch

from mnemos.attention.kernels.dispatch import forced, split_kv_attention
from mnemos.attention.kernels.memory_table import MemoryTable, PlanBuffers, plan_splits, table_of_payloads
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


def scattered(table: MemoryTable, room: int) -> MemoryTable:
    """The same memories on other pages of a larger pool, whose other pages are NaN to who reads them."""
    pool = torch.full((table.layers, room, table.pool.shape[2]), 0xFF, dtype=torch.uint8)
    pages = torch.randperm(room)[: len(table.pages)]
    pool[:, pages] = table.pool[:, table.pages.long()]
    return dataclasses.replace(table, pool=pool, pages=pages.int())


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_other_pages_give_the_same_bits(bits: int, poisoned: None) -> None:
    table = table_of(bits, 2, 64, (97, 31))
    q = torch.randn(1, 6, 64)
    results = []
    for each in (table, scattered(table, 23), scattered(table, 9)):
        plan = plan_splits(each, [[0, 1]], tiles_per_split=2)
        with forced("triton"):
            results.append(split_kv_attention(q, each, plan, 1, 0.125))
    for part, again, other in zip(*results, strict=True):
        assert torch.equal(part, again) and torch.equal(part, other)


def test_reads_ask_with_rows_of_their_own(poisoned: None) -> None:
    table = table_of(8, 2, 64, (40, 65, 33))
    q = torch.randn(5, 6, 64)
    plan = plan_splits(table, [[0, 1], [2]], query_rows=[[4, 1], [0]], rows=5, tiles_per_split=1)
    results = {}
    for path in ("naive", "triton"):
        with forced(path):
            results[path] = split_kv_attention(q, table, plan, 0, 0.125)
    for ours, twin in zip(results["triton"], results["naive"], strict=True):
        assert ours.shape[0] == 2 and (ours - twin).norm() / twin.norm() < 2e-3
    alone = []
    for row, span in ((4, 0), (1, 1)):
        with forced("naive"):
            alone.append(split_kv_attention(q[row : row + 1], table, plan_splits(table, [[span]]), 0, 0.125))
    weights = torch.softmax(torch.stack([lse for _, lse in alone]), dim=0)  # [2, 1, heads]
    joined = sum(weight[..., None] * out for weight, (out, _) in zip(weights, alone, strict=True))
    assert torch.allclose(results["naive"][0][:1], joined, atol=1e-5)


def test_a_plan_in_fixed_buffers(poisoned: None) -> None:
    """What a captured graph reads: larger plans, smaller ones and none, at the same places."""
    buffers = PlanBuffers.make(splits=9, batch=3, tiles=12, rows=4, device="cpu")
    q = torch.randn(4, 6, 64)
    for sizes, reads in (((97, 31), [[0, 1], [1]]), ((33,), [[], [0], []]), ((5,), [[]])):
        table = table_of(4, 2, 64, sizes)
        plan = plan_splits(table, reads, tiles_per_split=2, allow_empty=True)
        padded_table, padded = plan.into(table, buffers)
        assert padded.batch == 3 and padded.work is buffers.work and padded_table.pages is buffers.pages
        results = {}
        for path in ("naive", "triton"):
            with forced(path):
                results[path] = split_kv_attention(q, padded_table, padded, 1, 0.125)
        (out, lse), (twin, twin_lse) = results["triton"], results["naive"]
        assert not out.isnan().any() and not lse.isnan().any()
        assert torch.allclose(out, twin, atol=4e-3) and torch.allclose(lse, twin_lse, atol=4e-3)
        empty = [i for i in range(3) if i >= len(reads) or not reads[i]]
        assert not out[empty].any() and bool((lse[empty] == float("-inf")).all())
