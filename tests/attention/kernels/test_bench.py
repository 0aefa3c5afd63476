"""The bench's own arithmetic, its rivals' and its table, on tiny sizes; figures of kernels need a GPU."""

import json
from pathlib import Path

import pytest
import torch

from mnemos.attention.kernels import bench, bench_training
from mnemos.attention.kernels.bench import main
from mnemos.attention.kernels.bench_training import TrainingBench
from mnemos.attention.kernels.ceilings import Ceilings
from mnemos.attention.kernels.flex_rival import flex_decode, flex_ms
from mnemos.attention.kernels.naive.block_sparse import block_sparse
from mnemos.attention.kernels.timing import Row, median_ms, table_lines

CPU = torch.device("cpu")


def test_a_row_counts_bandwidth_and_share() -> None:
    row = Row(
        "copy", "1 GB", median_ms=0.5, bytes_moved=1_000_000_000, ceiling=4e12, rival="other", rival_ms=1.0
    )
    assert row.bandwidth == pytest.approx(2e12)
    assert row.share == pytest.approx(0.5)
    head, _, line = table_lines([row])
    assert line[head.index("share") :].startswith("50%    copy")
    assert line[head.index("GB/s") :].startswith("2000")
    assert line[head.index("rival ms") :].startswith("1.0000")
    assert line[head.index("TFLOP/s") :].startswith("-")


@pytest.mark.parametrize(
    ("operations", "bound_by", "share"), [(10**12, "product", 0.5), (10**11, "copy", 0.25)]
)
def test_a_share_is_of_the_ceiling_that_binds(operations: int, bound_by: str, share: float) -> None:
    row = Row(
        "training", "x", 2.0, 10**9, 2e12, operations=operations, product_ceiling=1e15,
        other_rivals=(("FlexAttention", 3.5),), note="forward",
    )  # fmt: skip
    assert (row.bound_by, row.share) == (bound_by, pytest.approx(share))
    head, _, line = table_lines([row])
    assert line[head.index("TFLOP/s") :].startswith(f"{operations / 2e9:.1f}")
    assert line.endswith("FlexAttention 3.5000 ms; forward")
    assert row.as_json()["other_rivals_median_ms"] == {"FlexAttention": 3.5}


def test_the_median_is_of_one_call() -> None:
    made: list[int] = []
    calls = [lambda: made.append(1), lambda: made.append(2)]
    assert median_ms(calls, CPU, 5) >= 0
    assert made.count(1) == made.count(2) == 3 + 5  # warm-up, then a round each


def test_tiny_sizes_give_a_table_and_its_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tiny", "--json", str(tmp_path / "figures" / "kernels.json")]) == 0
    figures = json.loads((tmp_path / "figures" / "kernels.json").read_text())
    shown = capsys.readouterr().out
    kernels = {row["kernel"] for row in figures["rows"]}
    assert kernels >= {
        "split_kv_attention", "lse_merge", "route_mass", "route_msa", "quantize_pack", "page_gather",
        "block_sparse",
    }  # fmt: skip
    assert not figures["failed"]
    with_flex = [row["kernel"] for row in figures["rows"] if row["other_rivals_median_ms"]]
    assert "block_sparse" in with_flex and "split_kv_attention" in with_flex
    assert figures["product_operations_per_s"] > 0
    for row in figures["rows"]:
        assert row["shape"] in shown
        by_bytes = row["bytes_moved"] / (row["median_ms"] * 1e-3) / row["ceiling_bytes_per_s"]
        if row["bound_by"] == "copy":
            assert row["share_of_ceiling"] == pytest.approx(by_bytes)
        else:
            rate = row["operations"] / (row["median_ms"] * 1e-3)
            assert row["share_of_ceiling"] == pytest.approx(rate / row["ceiling_operations_per_s"])
            assert row["share_of_ceiling"] > by_bytes


def test_a_section_that_fails_costs_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def sections(*_: object) -> dict[str, bench.Section]:
        return {
            "broken": lambda: [row for row in [None] if 1 / 0],
            "sound": lambda: [Row("sound", "1", 1.0, 8, 1e3)],
        }

    monkeypatch.setattr(bench, "sections", sections)
    path = tmp_path / "kernels.json"
    assert main(["--tiny", "--json", str(path)]) == 1
    figures = json.loads(path.read_text())
    assert figures["failed"] == {"broken": "ZeroDivisionError: division by zero"}
    assert [row["kernel"] for row in figures["rows"]] == ["sound"]
    assert "broken failed: ZeroDivisionError" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--tiny", "--json", str(path), "--only", "nothing"])


@pytest.fixture
def given() -> bench_training.Given:
    torch.manual_seed(5)
    ceilings = Ceilings(1e9, 1e9, 1e12)
    made = TrainingBench(CPU, bench_training.TINY, ceilings)._inputs()
    made.there[0, -3:] = False
    made.memory.used[1] = 3
    return made


def test_the_rivals_of_training_compute_the_same(given: bench_training.Given) -> None:
    memory, scale = given.memory, given.q.shape[3] ** -0.5
    with torch.no_grad():
        ours = block_sparse(given.q, given.k, given.v, given.there, memory, scale)
    theirs = bench_training._flex_call(given, only_forward=True)()
    there = given.there[:, None, :, None]
    assert ((theirs - ours) * there).norm() / ours.norm() < 1e-2  # bf16

    memory.used.fill_(memory.k.shape[1])
    given.there.fill_(True)
    ours, masked = bench_training._step(given), bench_training._masked_step(given)
    for mine, rival in zip(ours, masked, strict=True):
        assert (mine - rival).norm() / rival.norm() < 2e-2


def test_pairs_are_those_that_are_seen(given: bench_training.Given) -> None:
    given.there.fill_(True)
    tokens = given.q.shape[2]
    own = torch.ones(tokens, tokens).tril().sum() * len(given.q)
    assert bench_training._pairs(given) == own + given.memory.visible.sum() * given.memory.k.shape[1]
    assert (given.memory.visible.sum(dim=2) == bench_training.TINY.read_at_once).all()


def test_flex_attention_decodes_as_sdpa_does() -> None:
    q, k, v = torch.randn(2, 4, 1, 64), torch.randn(2, 2, 33, 64), torch.randn(2, 2, 33, 64)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    torch.testing.assert_close(flex_decode(q, k, v), expected, atol=1e-5, rtol=1e-5)


def test_a_rival_that_cannot_run_is_left_out_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> list[object]:
        raise RuntimeError("no compiler")

    assert flex_ms(broken, CPU, 1) == ()
    assert "FlexAttention was left out: RuntimeError: no compiler" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures for minutes where there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    assert "No CUDA device" in capsys.readouterr().err
