"""The table of attention patterns: its fits, its sequences, its columns."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mnemos.attention import bench_attention
from mnemos.attention.bench_attention_data import CPU, sequence
from mnemos.attention.bench_attention_memory import peak_bytes
from mnemos.attention.patterns.document_rows import begins_document
from mnemos.attention.power_law import fit
from mnemos.attention.training.batches import IGNORED
from mnemos.attention.training.needle import NeedleSizes, NeedleTask
from mnemos.errors import UsageError


@given(st.floats(0.1, 3), st.floats(1e-6, 1e6), st.integers(3, 6))
def test_a_power_law_is_found_again(exponent: float, factor: float, count: int) -> None:
    xs = [float(10 * 3**index) for index in range(count)]
    law = fit(xs, [factor * x**exponent for x in xs])
    assert law.exponent == pytest.approx(exponent) and law.factor == pytest.approx(factor)
    assert law.error is not None and law.error < 1e-6
    assert law.solve(factor * 700**exponent) == pytest.approx(700)


def test_the_error_of_an_exponent_is_that_of_least_squares() -> None:
    law = fit([1, 2, 4, 8], [1, 2 * 1.1, 4 / 1.1, 8])
    logs = torch.tensor([1.0, 2, 4, 8], dtype=torch.float64).log()
    design = torch.stack((logs, torch.ones(4, dtype=torch.float64)), dim=1)
    left = torch.tensor([0, math.log(1.1), -math.log(1.1), 0], dtype=torch.float64)
    off = left - design @ torch.linalg.lstsq(design, left).solution
    covariance = off.square().sum() / 2 * torch.linalg.inv(design.T @ design)
    assert law.error == pytest.approx(float(covariance[0, 0].sqrt()))
    assert fit([1, 10], [3, 30]).error is None and fit([1, 2], [5, 5]).solve(9) == math.inf
    for xs, ys in (([1], [1]), ([2, 2], [1, 3]), ([1, 2], [0, 1])):
        with pytest.raises(ValueError):
            fit(xs, ys)


@settings(max_examples=50, deadline=None)
@given(st.integers(32, 700))
def test_a_sequence_has_the_length_asked_for(length: int) -> None:
    task = NeedleTask(NeedleSizes(document=16, facts=2, keys=20), seed=0)
    batch = sequence(task, length)
    assert batch.tokens.shape == (1, length)
    documents = int(begins_document(batch.positions).sum())
    assert batch.evidence.shape == (1, documents - 1) and int(batch.evidence.sum()) == 1
    assert int((batch.targets != IGNORED).sum()) == length - documents
    assert batch.positions.max() < 16 and int(batch.asks.sum()) == 4


def test_peak_bytes_are_those_of_the_worst_moment() -> None:
    def step() -> None:
        first = torch.zeros(1000, 250)  # 1 MB
        second = first + 1
        del first
        third = second + 1
        del second, third

    assert peak_bytes(step, torch.device("cpu")) == pytest.approx(2_000_000, rel=0.01)


def test_patterns_are_measured_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    found = bench_attention.run([256, 512], ["window+msa"], needle_steps=1, repetitions=1, threads=1)
    assert list(found["patterns"]) == ["dense", "window+msa"] and found["reference_length"] == 512
    for name, row in found["patterns"].items():
        assert row["tokens_per_s"].keys() == {"256", "512"} and row["stopped_by"] is None
        assert row["peak_bytes"]["512"] > row["peak_bytes"]["256"] > 256 * CPU.dim * 4
        assert 0.5 < row["memory_exponent"] < 1.5 and row["time_exponent_error"] is None
        assert row["longest_is"] == "estimated" and row["longest_length"] > 512
        assert 0 <= row["recall"] <= 1 and row["claimed_time"] == ("O(n^2)" if name == "dense" else "O(n w)")
    assert found["patterns"]["dense"]["ratio_to_dense"]["512"] == pytest.approx(1)

    monkeypatch.setattr(bench_attention, "_LONGEST_STEP_S", 0.0)
    cut = bench_attention.run([256, 512], ["dense"], needle_steps=0, repetitions=1, threads=1)
    row = cut["patterns"]["dense"]
    assert row["stopped_by"] == "time" and row["tokens_per_s"]["512"] is None and row["recall"] is None
    assert row["time_exponent"] is None


def test_what_cannot_be_measured_is_said() -> None:
    with pytest.raises(UsageError, match="start at 256"):
        bench_attention.run([100], needle_steps=0)
    with pytest.raises(UsageError, match="no attention pattern 'sparse'"):
        bench_attention.run([256], ["window+sparse"], needle_steps=0)
    with pytest.raises(UsageError, match="not measured at 99"):
        bench_attention.run([256], ["dense"], reference=99, needle_steps=0, repetitions=1)
