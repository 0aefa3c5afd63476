"""Where copies overtake the gather kernel: found from times, measured once, kept."""

import json
from pathlib import Path

import pytest
import torch

from mnemos.attention.gpu import crossover
from mnemos.attention.gpu.copies import Move, pieces_of, split_pieces
from mnemos.attention.gpu.crossover import DEFAULT, Timed, crossover_of, kept, measure


@pytest.mark.parametrize(
    ("gather", "copies", "figure"),
    [
        ((1, 2, 4, 8), (9, 9, 4, 4), 4),
        ((1, 2, 4, 8), (9, 9, 9, 9), 16),
        ((1, 2, 4, 8), (1, 1, 1, 1), 0),
        ((1, 2, 4, 8), (0.5, 9, 9, 4), 8),  # the first one is an outlier
    ],
)
def test_the_shortest_run_from_which_on_copies_win(
    gather: tuple[float, ...], copies: tuple[float, ...], figure: int
) -> None:
    timed = [Timed(1 << i, *pair) for i, pair in enumerate(zip(gather, copies, strict=True))]
    assert crossover_of(timed) == figure
    assert crossover_of(timed[::-1]) == figure


def test_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNEMOS_CACHE_DIR", str(tmp_path))
    calls = []

    def measuring() -> list[Timed]:
        calls.append(1)
        return [Timed(1024, 1.0, 2.0), Timed(2048, 2.0, 1.0)]

    assert kept("Some GPU, torch 2", measuring) == kept("Some GPU, torch 2", measuring) == 2048
    assert len(calls) == 1
    assert kept("Another GPU", measuring) == 2048 and len(calls) == 2
    (path,) = (tmp_path / "gpu").glob("*some-gpu*.json")
    assert json.loads(path.read_text())["measured"] == [[1024, 1.0, 2.0], [2048, 2.0, 1.0]]
    for damaged in ("", "{}", "[]", json.dumps({"version": 0, "machine": "Some GPU, torch 2"})):
        path.write_text(damaged)
        assert kept("Some GPU, torch 2", measuring) == 2048
    assert len(calls) == 6


def test_no_memory_to_measure_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNEMOS_CACHE_DIR", str(tmp_path))

    def measuring() -> list[Timed]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert kept("Full GPU", measuring) == DEFAULT
    assert not (tmp_path / "gpu").exists()


def test_both_ways_are_timed() -> None:
    timed = measure(torch.device("cpu"), (1024, 4096), total_bytes=1 << 14, repeats=1)
    assert [each.run_bytes for each in timed] == [1024, 4096]
    assert all(each.gather_ms > 0 and each.copies_ms > 0 for each in timed)
    assert crossover.gather_below(torch.device("cpu")) == 0


def test_neighbours_on_both_sides_go_together() -> None:
    def first(layer: int) -> torch.Tensor:
        raise AssertionError

    def second(layer: int) -> torch.Tensor:
        raise AssertionError

    moves = [
        Move(first, [3, 4, 9], [0, 1, 2]),
        Move(first, [10, 11], [3, 4]),
        Move(second, [12], [5]),
        Move(second, [14], [6]),
        Move(first, [0], [8]),
    ]
    pieces = pieces_of(moves)
    assert [(p.source, p.place, p.page, p.count) for p in pieces] == [
        (first, 3, 0, 2), (first, 9, 2, 3), (second, 12, 5, 1), (second, 14, 6, 1), (first, 0, 8, 1)
    ]  # fmt: skip
    copied, gathered = split_pieces(pieces, 100, 250)
    assert gathered == {first: [pieces[0], pieces[4]], second: pieces[2:4]}
    assert copied == [pieces[1]]
    copied, gathered = split_pieces(pieces[:3], 100, 250)
    assert gathered == {} and copied == [pieces[1], pieces[0], pieces[2]]  # a launch for one gains nothing
