"""`mnemos train lm` as a person runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.tui.conftest import Command

from mnemos.attention.training.checkpoints import latest
from mnemos.tui.sparkline import sparkline

_TINY = ["--dim", "16", "--heads", "2", "--length", "34", "--batch", "2", "--document", "16", "--facts", "1"]
_TINY += ["--pool", "4", "--top-k", "1", "--threads", "1"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text("All that is said here is said again, and again it is heard. " * 8, encoding="utf-8")
    return path


def test_it_trains_on_files_draws_and_goes_on(mnemos: Command, text: Path, tmp_path: Path) -> None:
    lines = tmp_path / "asked.jsonl"
    asked = {
        "documents": ["a cat sat", "a dog ran"],
        "question": "who ran?",
        "answer": "dog",
        "evidence": [1],
    }
    lines.write_text(json.dumps(asked) + "\n" + json.dumps({"text": "x" * 40}) + "\n", encoding="utf-8")
    out, picture = tmp_path / "run", tmp_path / "losses.png"
    files = ["--data", str(text), "--data", str(lines), "--pattern", "linear,msa", "--steps", "3"]
    ran = mnemos("train", "lm", "--out", str(out), *files, "--plot", str(picture), "--json", *_TINY)
    assert ran.code == 0, ran.err
    assert ran.json["finished"] and ran.json["step"] == 3 and ran.json["layers"] == ["linear", "msa"]
    assert ran.json["loss"] > 1 and ran.json["recall"] is None and ran.json["router"] is not None
    assert picture.read_bytes().startswith(b"\x89PNG") and "drawn to" in ran.err
    assert "cat" not in (out / "log.jsonl").read_text()

    again = mnemos("train", "lm", "--out", str(out), "--data", str(text), *_TINY)
    assert again.code == 2 and "--resume" in again.err
    other = mnemos("train", "lm", "--out", str(out), "--resume", "--steps", "9")
    assert other.code == 2 and "--steps is as it was" in other.err
    text.write_text("something else " * 20, encoding="utf-8")
    changed = mnemos("train", "lm", "--out", str(out), "--resume")
    assert changed.code == 2 and "not what they were" in changed.err


def test_what_cannot_be_trained_is_said(mnemos: Command, text: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    bad = tmp_path / "bad.jsonl"
    bad.write_text(
        '{"documents": ["a"], "question": "b", "answer": "c", "evidence": [4]}\n', encoding="utf-8"
    )
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9 " * 100)
    for options, code, said in (
        (["--task", "needle", "--pattern", "sparse"], 2, "no attention pattern 'sparse'"),
        (["--task", "hay"], 2, "no task 'hay'"),
        ([], 2, "--data or a task"),
        (["--data", str(text), "--document", "5000"], 2, "no text longer than one document"),
        (["--data", str(bad)], 2, "line 1"),
        (["--data", str(latin)], 2, "not UTF-8"),
        (["--task", "needle", "--length", "20"], 2, "at least 72 tokens"),
        (["--task", "needle", "--heads", "3"], 2, "--dim and --heads"),
        (["--resume"], 1, "no checkpoint"),
    ):
        ran = mnemos("train", "lm", "--out", out, *options)
        assert ran.code == code and said in ran.err, (options, ran.err)
        assert "latest" not in ran.out and "caf" not in ran.err
    assert not list(tmp_path.glob("run/step-*"))


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_ctrl_c_saves_and_says_so(mnemos: Command, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-c",
        "from mnemos.tui.main import main; main()",
        "train",
        "lm",
        "--task",
        "needle",
    ]
    running = subprocess.Popen(
        [*command, "--out", str(out), "--steps", "100000", "--save-every", "100000", *_TINY, "--json"],
        env=mnemos.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (out / "log.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    printed, told = running.communicate(timeout=120)
    assert running.returncode == 130, told
    report = json.loads(printed)
    assert not report["finished"] and 0 < report["step"] < 100_000 and "--resume" in told
    assert latest(out).progress["step"] == report["step"]


def test_sparkline() -> None:
    assert (
        sparkline([], 5) == "" and sparkline([3.0], 5) == "▁" and sparkline([1, float("nan"), 8], 2) == "▁█"
    )
    assert sparkline([1, 1, 2, 2, 8, 8], 3) == "▁▂█" and len(sparkline(list(range(100)), 7)) == 7
