"""`mnemos model calibrate` as a person runs it, on a small random model."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tests.memory.conftest import write_tiny
from tests.tui.conftest import SCRIPT, Command

from mnemos.attention.calibration_file import read_calibration
from mnemos.tui.calibrate import finds_less

WORDS = ("kettle", "quince", "ladder", "violin", "lamp", "kite")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "models" / "tiny")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "talks.jsonl"
    with path.open("w") as file:
        for number in range(4):
            memories = [
                {"id": f"{number}.{at}", "speaker": "Ann", "text": f"The {word} is number {number}{at}."}
                for at, word in enumerate(WORDS)
            ]
            questions = [
                {
                    "question": f"Which is the {word}?",
                    "answer": f"{number}{at}",
                    "evidence": [f"{number}.{at}"],
                }
                for at, word in enumerate(WORDS[:2])
            ]
            file.write(json.dumps({"id": str(number), "memories": memories, "questions": questions}) + "\n")
    return path


def test_it_writes_the_file_that_the_model_is_then_loaded_with(
    mnemos: Command, model: Path, data: Path, tmp_path: Path
) -> None:
    mnemos.remember("The kettle is red.")
    shown = mnemos("model", "show", str(model), "--json")
    assert shown.json["model"]["calibrated"] is False and shown.json["model"]["calibration"] is None
    ran = mnemos("model", "calibrate", str(model), "--data", str(data), "--questions", "6", "--json")
    beside = model / "calibration.json"
    assert ran.code == 0, ran.err
    assert ran.json["path"] == str(beside) and ran.json["model"] == "tiny"
    assert ran.json["measured"]["conversations"] == {"training": 3, "held_out": 1}
    assert f"wrote {beside}" in ran.err and "calibrating tiny" in ran.err
    assert read_calibration(beside).model_dump(mode="json")["weights"] == ran.json["weights"]
    shown = mnemos("model", "show", str(model), "--json")
    assert shown.json["model"]["calibrated"] is True and shown.json["model"]["calibration"] == str(beside)
    found = mnemos("memory", "search", "kettle", "--model", str(model))
    assert found.code == 0 and "not calibrated" not in found.err
    beside.write_text(beside.read_text()[:200])
    refused = mnemos("memory", "search", "kettle", "--model", str(model))
    assert refused.code == 1 and "cut off or damaged" in refused.err
    other = mnemos("memory", "search", "kettle", "--model", str(model), MNEMOS_CALIBRATION="none")
    # The bank's traces hold the keys of the calibrated heads, or both read the same ones.
    if [tuple(head) for head in ran.json["key_heads"]] == [(1, 0), (1, 2)]:
        assert other.code == 0
    else:
        assert other.code == 3 and "another calibration" in other.err


def test_an_uncalibrated_model_says_so_once(mnemos: Command, model: Path) -> None:
    mnemos.remember("The kettle is red.")
    ran = mnemos("memory", "search", "kettle", "--model", str(model))
    assert ran.code == 0 and ran.err.count("is not calibrated") == 1 and "mnemos model calibrate" in ran.err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 2, "--data"),
        (["--data", "none.jsonl"], 1, "no file"),
        (["--data", "{data}", "--out", "/nonexistent/c.json"], 2, "--out"),
        (["--data", "{data}", "--questions", "1"], 2, "questions"),
        (["--data", "{data}", "--held-out", "{data}"], 2, "isn't in the training data"),
    ],
)
def test_what_it_can_not_do(
    mnemos: Command, model: Path, data: Path, options: list[str], code: int, message: str
) -> None:
    ran = mnemos("model", "calibrate", str(model), *(each.format(data=data) for each in options))
    assert ran.code == code and message in ran.err and ran.out == ""
    assert not (model / "calibration.json").exists()


def test_bad_data_is_told_by_its_line(mnemos: Command, model: Path, tmp_path: Path) -> None:
    for text, message in (
        ("", "no conversation with a question"),
        ('{"memories": []}\n', "no conversation with a question"),
        ('{"memories": [{"id": 3}]}\n', "Line 1 of bad.jsonl"),
        ("not json\n", "Line 1 of bad.jsonl"),
    ):
        bad = tmp_path / "bad.jsonl"
        bad.write_text(text)
        ran = mnemos("model", "calibrate", str(model), "--data", str(bad))
        assert ran.code == 2 and message in ran.err


def test_interrupted_it_leaves_what_was_there(mnemos: Command, model: Path, data: Path) -> None:
    beside = model / "calibration.json"
    command = [SCRIPT, "model", "calibrate", str(model), "--data", str(data)]
    with subprocess.Popen(command, env=mnemos.environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "calibrating" in process.stderr.readline()  # memories are being read
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        assert process.wait(60) == 130 and time.monotonic() - started < 30
    assert not beside.exists() and sorted(path.name for path in model.iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "lexical", "said"),
    [
        (0.4, 0.3, None),
        (0.6, 0.3, "the calibration before"),
        (None, 0.7, "the words alone"),
        (None, None, None),
    ],
)
def test_it_says_when_it_finds_less_than_there_was(
    before: float | None, lexical: float | None, said: str | None
) -> None:
    figures = {"before": before, "lexical": lexical, "calibrated": 0.5}
    recall = {name: {"mean": {"mrr": mrr}} for name, mrr in figures.items() if mrr is not None}
    told = finds_less(recall)
    assert (told is None) if said is None else (told is not None and said in told)
