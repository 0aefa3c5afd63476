"""The bench of whole turns, at tiny sizes on the CPU: its rows are made, and the memories take their way."""

import torch

from mnemos.attention.gpu import bench_turn
from mnemos.attention.kernels.timing import Row, table_lines


def test_the_rows_of_tiny_turns() -> None:
    rows = bench_turn.rows(torch.device("cpu"))
    assert [row.kernel for row in rows] == [
        "first token",
        "decode step",
        "decode step",
        "query to first token",
    ]
    assert all(isinstance(row, Row) and row.median_ms > 0 and row.bytes_moved > 0 for row in rows)
    assert rows[0].rival == "their text read again" and rows[1].rival == "without memories"
    assert len(table_lines(rows)) == 6


def test_each_first_token_pages_all_of_its_memories_in() -> None:
    turns = bench_turn._Turns(torch.device("cpu"), bench_turn.TINY)
    for _ in range(3):
        turns.first_token()
    pool = turns._pool
    assert pool.hits == 0 and pool.misses > 0, "they had left the device"
    assert pool.host is not None and pool.host.hits > pool.host.misses, "and were in host memory"
    assert pool.host.misses == 2 * bench_turn.TINY.memories
