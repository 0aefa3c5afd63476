"""The bench's own arithmetic and table, on tiny sizes; figures of kernels need a GPU."""

import json
from pathlib import Path

import pytest
import torch

from mnemos.attention.kernels.bench import main
from mnemos.attention.kernels.timing import Row, median_ms, table_lines


def test_a_row_counts_bandwidth_and_share() -> None:
    row = Row(
        "copy", "1 GB", median_ms=0.5, bytes_moved=1_000_000_000, ceiling=4e12, rival="other", rival_ms=1.0
    )
    assert row.bandwidth == pytest.approx(2e12)
    assert row.share == pytest.approx(0.5)
    head, _, line = table_lines([row])
    assert line[head.index("of copy") :].startswith("50%")
    assert line[head.index("GB/s") :].startswith("2000")
    assert line[head.index("rival ms") :].startswith("1.0000")


def test_the_median_is_of_one_call() -> None:
    made: list[int] = []
    calls = [lambda: made.append(1), lambda: made.append(2)]
    assert median_ms(calls, torch.device("cpu"), 5) >= 0
    assert made.count(1) == made.count(2) == 3 + 5  # warm-up, then a round each


def test_tiny_sizes_give_a_table_and_its_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tiny", "--json", str(tmp_path / "figures" / "kernels.json")]) == 0
    figures = json.loads((tmp_path / "figures" / "kernels.json").read_text())
    shown = capsys.readouterr().out
    kernels = {row["kernel"] for row in figures["rows"]}
    assert kernels == {
        "split_kv_attention", "lse_merge", "route_mass", "route_msa", "quantize_pack", "page_gather"
    }  # fmt: skip
    for row in figures["rows"]:
        assert row["shape"] in shown
        assert row["share_of_ceiling"] == pytest.approx(
            row["bytes_moved"] / (row["median_ms"] * 1e-3) / row["ceiling_bytes_per_s"]
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures for minutes where there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    assert "No CUDA device" in capsys.readouterr().err
