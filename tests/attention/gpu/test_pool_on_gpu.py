"""The pools on a CUDA device: pinned pages, a copy stream, the gather kernel, erases under running reads."""

from collections.abc import Mapping, Sequence

import pytest
import torch
from tests.attention.gpu.memories import CONFIG, DIM, EXPECTED, LAYERS, PAGE, PAGE_BYTES, PAYLOADS, pages_of

from mnemos.attention.gpu.host_pool import HostPool
from mnemos.attention.gpu.page_room import Key
from mnemos.attention.gpu.pool import DevicePool
from mnemos.attention.kernels.dispatch import split_kv_attention
from mnemos.attention.kernels.memory_table import PlanBuffers, plan_splits, table_of_payloads

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def fetch(keys: Sequence[Key]) -> Mapping[Key, bytes]:
    return {key: PAYLOADS[key] for key in keys if key in PAYLOADS}


def names(*wanted: str) -> list[Key]:
    return [("a", name) for name in wanted]


def pool_of(pages: int, host_pages: int | None, gather_below: int = 0) -> DevicePool:
    host = None
    if host_pages is not None:
        host = HostPool(CONFIG, 4, budget_bytes=host_pages * PAGE, device="cuda")
        assert host.pool.is_pinned()
    return DevicePool(
        CONFIG, 4, budget_bytes=pages * PAGE, device="cuda", host=host, gather_below=gather_below
    )


@pytest.mark.parametrize("gather_below", [0, 2 * PAGE_BYTES + 1, 1 << 30])
@pytest.mark.parametrize("host_pages", [None, 3, 40])
def test_layers_arrive_whole_however_they_come(host_pages: int | None, gather_below: int) -> None:
    pool = pool_of(12, host_pages, gather_below)
    for round_ in range(20):
        wanted = (("two", "one"), ("long", "two"), ("even", "one", "long"), ("nine", "two"))[round_ % 4]
        with pool.page_in(names(*wanted), fetch) as reads:
            for layer in range(LAYERS):
                reads.wait(layer)
                got = [pages_of(reads, index)[layer].cpu() for index in range(len(reads.keys))]
                for key, pages in zip(reads.keys, got, strict=True):
                    assert torch.equal(pages, EXPECTED[key][layer])


def test_attention_behind_a_page_in_is_the_naive_twins_and_repeats_its_bits() -> None:
    pool = pool_of(12, 40)
    q = torch.randn(1, 4, DIM)
    plain = table_of_payloads([PAYLOADS[key] for key in names("two", "long")])
    expected = split_kv_attention(q, plain, plan_splits(plain, [range(3)]), 1, 0.125)
    results = []
    for other in (("even",), ("nine", "even"), ("one",)):
        pool.page_in(names(*other), fetch).release()
        with pool.page_in(names("two", "long"), fetch) as reads:
            plan = plan_splits(reads.table, [range(3)])
            reads.wait(1)
            results.append(split_kv_attention(q.cuda(), reads.table, plan, 1, 0.125))
    for part, twin in zip(results[0], expected, strict=True):
        assert (part.cpu() - twin).norm() / twin.norm() < 3e-3
    for again in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(results[0], again, strict=True))


def test_pages_are_not_overwritten_under_a_read_that_was_queued() -> None:
    """The reader lets go while the device is still far behind; others take its pages at once."""
    pool = pool_of(5, 40)
    for name in ("long", "two"):
        pool.page_in(names(name), fetch).release()
    torch.cuda.synchronize()
    for _ in range(20):
        with pool.page_in(names("long"), fetch) as reads:
            reads.wait(LAYERS - 1)
            torch.cuda._sleep(20_000_000)  # cycles: the read below is behind it
            seen = pages_of(reads, 0).clone()
        pool.page_in(names("two"), fetch).release()
        assert torch.equal(seen.cpu(), EXPECTED["a", "long"])


@pytest.mark.parametrize("held", [True, False])
def test_what_is_dropped_is_zeros_when_drop_returns(held: bool) -> None:
    pool = pool_of(12, 40)
    reads = pool.page_in(names("long", "two"), fetch)
    if not held:
        reads.wait(LAYERS - 1)
        torch.cuda._sleep(20_000_000)
        reads.release()
    pool.drop()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # which waits for nothing
        assert not pool.pool.any()
    assert pool.host is not None and not pool.host.pool.any()
    reads.release()
    assert pool.bytes == 0


def test_a_captured_graph_reads_what_its_buffers_say() -> None:
    pool = pool_of(12, 40)
    buffers = PlanBuffers.make(splits=8, batch=2, tiles=10, device="cuda")
    q = torch.randn(2, 4, DIM, device="cuda")
    graph = None
    for wanted, spans in ((("two", "one"), 3), (("long",), 1), (("even", "nine"), 2)):
        with pool.page_in(names(*wanted), fetch) as reads:
            plan = plan_splits(reads.table, [range(spans)])
            table, padded = plan.into(reads.table, buffers)
            reads.wait(LAYERS - 1)
            expected = split_kv_attention(q[:1], reads.table, plan, 1, 0.125)
            if graph is None:
                split_kv_attention(q, table, padded, 1, 0.125)
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    out, lse = split_kv_attention(q, table, padded, 1, 0.125)
            graph.replay()
            assert torch.equal(out[:1], expected[0]) and torch.equal(lse[:1], expected[1])
            assert not out[1].any() and bool((lse[1] == float("-inf")).all())
            torch.cuda.synchronize()


def test_a_budget_beyond_the_device_makes_a_smaller_pool() -> None:
    free, _ = torch.cuda.mem_get_info()
    pool = DevicePool(CONFIG, 4, budget_bytes=3 * free, device="cuda", gather_below=0)
    assert 0 < pool.budget_bytes < free
    del pool
    torch.cuda.empty_cache()
