"""What `mnemos bench agent` measures, at small sizes."""

import asyncio
import time

import pytest

from mnemos.agent import bench_agent
from mnemos.agent.bench_meter import Meter
from mnemos.attention.models import LanguageModel
from mnemos.errors import UsageError


class Worker:
    def outer(self) -> None:
        time.sleep(0.02)
        self.inner()

    def inner(self) -> None:
        time.sleep(0.01)


def test_each_moment_counts_once_and_methods_are_put_back() -> None:
    worker, meter = Worker(), Meter()
    with meter.on(worker, "outer", "a"), meter.on(Worker, "inner", "b"):
        worker.outer()
        worker.inner()
    assert meter.seconds["a"] >= 0.03
    assert 0.01 <= meter.seconds["b"] < meter.seconds["a"]
    kept = dict(meter.seconds)
    worker.outer()
    assert meter.seconds == kept
    assert "outer" not in vars(worker)


def test_parts_and_turns_that_mean_nothing() -> None:
    with pytest.raises(UsageError, match="no part speed"):
        bench_agent.run(parts=["speed"])
    with pytest.raises(UsageError, match="10 turns"):
        bench_agent.run(turns=9)


@pytest.mark.slow
@pytest.mark.model
def test_the_figures_fit_together(language_model: LanguageModel) -> None:
    steps: list[int] = []
    found = asyncio.run(bench_agent.concurrency(language_model, 2, 4, lambda: steps.append(1)))
    assert len(steps) == 4
    assert (found["conversations"], found["tokens"]) == (2, 4)
    assert found["decode_ratio"] == pytest.approx(
        found["decode_tokens_per_s"] / found["one_decode_tokens_per_s"], rel=0.01
    )
    assert 1 <= found["mean_batch"] <= 2
    assert found["finish_slowest_s"] >= found["finish_mean_s"]
    grown = bench_agent.memory(language_model, 10, lambda: None)
    if grown["growth_percent"] is not None:
        assert grown["end_mb"] > 100
        assert -50 < grown["growth_percent"] < 50


@pytest.mark.model
def test_a_turn_is_the_sum_of_its_parts(language_model: LanguageModel) -> None:
    found = bench_agent.overhead(language_model, lambda: None)
    parts = ("model_ms", "route_page_ms", "durable_ms", "loop_ms")
    assert all(found[name] > 0 for name in parts)
    assert sum(found[name] for name in parts) == pytest.approx(found["turn_ms"], rel=0.5)
    assert found["loop_cpu_ms"] < found["turn_ms"]
