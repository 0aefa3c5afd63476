"""A tiny hybrid learns the needle task; its process is killed on the way, and nothing of it shows."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mnemos.attention.training.checkpoints import latest
from mnemos.attention.training.trainer import LOG, read_log

ROOT = Path(__file__).resolve().parents[3]
_COMMAND = [sys.executable, "-c", "from mnemos.tui.main import main; main()", "train", "lm"]
_RUN = {
    "task": "needle", "pattern": "window,msa", "steps": 400, "batch": 32, "length": 66, "start-length": 18,
    "document": 8, "facts": 1, "pool": 2, "top-k": 1, "window": 16, "dim": 64, "heads": 2,
    "learning-rate": 0.004, "router-share": 0.1, "save-every": 50, "threads": 1,
}  # fmt: skip


def start(*options: str) -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*_COMMAND, *options, "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_hybrid_learns_to_find_needles_killed_once(tmp_path: Path) -> None:
    settings = [word for name, value in _RUN.items() for word in (f"--{name}", str(value))]
    whole = start("--out", str(tmp_path / "whole"), *settings)
    killed = start("--out", str(tmp_path / "killed"), *settings)
    deadline = time.monotonic() + 500
    while len(read_log(tmp_path / "killed" / LOG, before=10**6)) < 130:
        assert time.monotonic() < deadline and killed.poll() is None
        time.sleep(0.2)
    killed.kill()
    killed.communicate(timeout=60)
    assert latest(tmp_path / "killed").progress["step"] < 200
    resumed = start("--out", str(tmp_path / "killed"), "--resume")
    reports = []
    for process in (resumed, whole):
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        reports.append(json.loads(out))
    assert reports[1]["seconds"] < 600
    assert [report["recall"] for report in reports] == [pytest.approx(1.0, abs=0.05)] * 2, reports

    one, other = (tmp_path / name / "step-00000400" for name in ("whole", "killed"))
    for file in ("model.safetensors", "optimiser.safetensors", "random.safetensors", "training.json"):
        assert (one / file).read_bytes() == (other / file).read_bytes(), file
