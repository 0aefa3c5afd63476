"""What `bench tui` measures, in the small: a figure is there only if the screen answered."""

from pathlib import Path

import pytest

from mnemos.store.bench_erase import NAMESPACE
from mnemos.store.keys import KeyFile
from mnemos.tui import bench_screen, bench_start


@pytest.mark.slow
def test_typing_and_looking_are_timed(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "key")
    bench_screen.fill(tmp_path / "bank", 300, keys)
    typed = bench_screen.typing(tmp_path / "bank", keys, strokes=3, tokens_per_s=50)
    assert typed["strokes"] == 3 and 0 < typed["keystroke_ms_p50"] <= typed["keystroke_ms_p95"]
    empty = bench_screen.typing_in_empty(strokes=3)
    assert 0 < empty["empty_keystroke_ms_p50"] <= empty["empty_keystroke_ms_p95"]
    looked = bench_screen.inspecting(tmp_path / "bank", keys, NAMESPACE, pages=4)
    assert looked["memories"] == 300
    assert all(looked[name] > 0 for name in ("first_paint_ms", "scroll_ms_p95", "filter_ms_p95"))
    assert looked["filter_ms_p50"] <= looked["filter_ms_p95"]


@pytest.mark.slow
def test_a_start_is_timed(tmp_path: Path) -> None:
    found = bench_start.starting(tmp_path / "bank", runs=1, idle_s=1.0, model="/none")
    assert found["start_s"] > 0 and found["empty_start_s"] > 0 and found["idle_cpu_percent"] >= 0


def test_p95() -> None:
    assert bench_screen.p95([float(value) for value in range(1, 101)]) == 95
    assert bench_screen.p95([3.0]) == 3
