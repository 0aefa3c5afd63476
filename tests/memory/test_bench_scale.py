"""The benchmark of growing banks, on small ones, with a real (small) model."""

import shutil
from pathlib import Path

import pytest
import torch
from tests.memory.conftest import write_tiny

from mnemos import MemoryBank
from mnemos.attention.encode import Trace
from mnemos.attention.memory_codec import decode_kv, decode_route
from mnemos.attention.models import LanguageModel
from mnemos.errors import BankFullError, UsageError
from mnemos.memory import bench_scale
from mnemos.memory.bench_scale import NAMESPACE
from mnemos.memory.bench_scale_traces import TraceMaker
from mnemos.store.keys import KeyFile

FIGURES = {"open_s", "rss_mb", "rss_model_mb", "disk_gb", "route_ms_p50", "route_ms_p95", "route_cold_ms_p50"}
FIGURES |= {
    "route_cold_ms_p95",
    "query_ms",
    "page_ms",
    "turn_ms_p50",
    "remember_ms",
    "forget_ms",
    "encrypted",
}
FIGURES |= {"route_cached_ms_p50", "page_cached_ms", "turn_cached_ms_p50"}
FIGURES |= {"route_cpu_ms", "query_cpu_ms", "page_cpu_ms", "memories", "tokens", "vivid", "build_s"}


def test_each_size_is_built_and_measured_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(write_tiny(tmp_path / "tiny"))
    place = tmp_path / "banks"
    done: list[tuple[int, int]] = []
    found = bench_scale.run(
        tokens=[6000],
        vivid_gb=0.0008,
        encoded=3,
        queries=2,
        model=model,
        path=place,
        on_progress=lambda at, of: done.append((at, of)),
    )
    figures = found["sizes"]["6000"]
    assert set(figures) == FIGURES
    assert abs(figures["tokens"] - 6000) < 600 and figures["encrypted"]
    assert "3 really encoded memories" in found["synthetic"] and found["text"] == "made up"
    assert figures["open_s"] > 0 and figures["route_ms_p50"] > figures["query_ms"] > 0
    assert done[-1] == (figures["memories"],) * 2
    with MemoryBank.open(place / "6000" / "bank", keys=KeyFile(place / "6000" / "bank.key")) as bank:
        stats = bank.stats(NAMESPACE)
        assert (stats.memories, stats.pending) == (figures["memories"], 0)  # what it wrote it has forgotten
        assert 0 < stats.vivid == figures["vivid"] < stats.memories == stats.vivid + stats.faint
        assert bank.verify(deep=True).ok
    monkeypatch.setattr(bench_scale, "_measured", lambda *_: {})
    again = bench_scale.run(tokens=[6000], encoded=3, queries=2, model=model, path=place)
    assert again["sizes"]["6000"]["build_s"] == figures["build_s"]  # measured again, not built again


def test_made_traces_are_as_large_as_real_ones_and_decode(tiny_model: LanguageModel, tmp_path: Path) -> None:
    with MemoryBank.open(tmp_path / "bank") as bank:
        real = [bank.remember(text) for text in ("one two three", "four five six seven eight nine")]
        encoder = bank.recaller(tiny_model).encoder
        drafts = encoder.encode(real)
    maker = TraceMaker([Trace(draft.tokens, draft.kv, draft.route) for draft in drafts], "fp")
    keys = torch.cat([decode_route(draft.route).keys.abs().flatten() for draft in drafts])
    for vivid in (True, False, True, False):
        made = maker.draft("id", is_vivid=vivid)
        record = decode_route(made.route)
        assert len(made.route) in {len(draft.route) for draft in drafts}
        assert record.tokens == made.tokens and float(record.keys.abs().max()) <= float(keys.max()) * 1.5
        assert bool(made.kv) == vivid
        if vivid:
            spans = decode_kv(made.kv, tiny_model.config, torch.float32)
            assert sum(span.tokens for span in spans) == made.tokens


def test_a_size_that_does_not_fit_the_disk_is_told_before_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(write_tiny(tmp_path / "tiny"))
    usage = type(shutil.disk_usage(tmp_path))(1000, 900, 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(BankFullError, match="--path"):
        bench_scale.run(tokens=[10_000], model=model, path=tmp_path / "banks")
    with pytest.raises(UsageError):
        bench_scale.run(tokens=[10], model=model)
