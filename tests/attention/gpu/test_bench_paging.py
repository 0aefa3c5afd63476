"""The page-in bench at tiny sizes on the CPU: its rows count what they say."""

import torch

from mnemos.attention.gpu.bench_paging import TINY, PagingBench, rows
from mnemos.attention.kernels.page_layout import PageLayout


def test_rows_at_tiny_sizes() -> None:
    found = rows(torch.device("cpu"))
    assert [row.kernel for row in found] == ["page_in"] * 4 + ["page_gather"] * 2
    assert all(row.median_ms > 0 and row.ceiling > 0 for row in found)
    page = PageLayout(4, TINY.kv_heads, TINY.head_dim).page_bytes
    whole = TINY.layers * TINY.memories * 2 * page  # 40 tokens: a tile and a bit
    assert [row.bytes_moved for row in found[:4]] == [whole, whole, whole // TINY.layers, whole]
    assert all(row.rival_ms is not None and row.rival_ms > 0 for row in (found[0], found[3], *found[4:]))


def test_every_turn_copies_its_set_anew() -> None:
    """Nothing is timed that was there already."""
    bench = PagingBench(torch.device("cpu"), TINY)
    pool = bench._pool(host=True)
    asked: list[int] = []
    turn = bench._turn(pool, lambda wait: asked.append(pool.misses))
    for _ in range(6):
        turn()
    assert asked == [TINY.memories * (i + 1) for i in range(6)] and pool.hits == 0
    assert pool.host is not None and pool.host.misses == 2 * TINY.memories
