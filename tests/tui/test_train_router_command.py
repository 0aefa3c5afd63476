"""`mnemos train router` as a person runs it, on a small random model."""

import json
from pathlib import Path

import pytest
from tests.conftest import write_scripted_msa
from tests.memory.conftest import write_tiny
from tests.tui.conftest import Command

from mnemos.attention.calibration_file import read_calibration

WORDS = ("kettle", "quince", "ladder", "violin", "lamp", "kite")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "models" / "tiny")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "talks.jsonl"
    with path.open("w") as file:
        for number in range(6):
            memories = [
                {"id": f"{number}.{at}", "speaker": "Ann", "text": f"The {word} is number {number}{at}."}
                for at, word in enumerate(WORDS)
            ]
            questions = [
                {"question": f"Which is the {word}?", "evidence": [f"{number}.{at}"]}
                for at, word in enumerate(WORDS[:3])
            ]
            file.write(json.dumps({"id": str(number), "memories": memories, "questions": questions}) + "\n")
    return path


def test_what_it_trains_is_searched_by(mnemos: Command, model: Path, data: Path) -> None:
    arguments = ("--model", str(model), "--data", str(data), "--epochs", "1", "--dims", "16")
    ran = mnemos("train", "router", *arguments, "--force", "--json")
    assert ran.code == 0, ran.err
    beside = model / "calibration.json"
    assert ran.json["path"] == str(beside) and "reencode" in ran.err
    assert set(ran.json["recall"]) == {"lexical", "untrained", "trained", "vector"}
    vectors = read_calibration(beside).vectors
    assert vectors is not None and vectors.form == ran.json["form"] and vectors.dims == 16
    mnemos.remember("The kettle is red.")
    found = mnemos("memory", "search", "kettle", "--model", str(model), "--explain", "--json")
    assert found.code == 0 and "vector" in found.json["results"][0]["signals"]
    held = mnemos("train", "router", *arguments, "--out", str(model / "other.json"), "--json")
    assert held.code == 0
    if held.json["worse"]:
        assert held.json["path"] is None and not (model / "other.json").exists() and "not written" in held.err


def test_wrong_use_is_told_before_the_work(mnemos: Command, model: Path, data: Path, tmp_path: Path) -> None:
    assert mnemos("train", "router", "--model", str(model)).code == 2
    assert mnemos("train", "router", "--model", str(model), "--data", str(data), "--dims", "20").code == 2
    nowhere = tmp_path / "none" / "c.json"
    ran = mnemos("train", "router", "--model", str(model), "--data", str(data), "--out", str(nowhere))
    assert ran.code == 2 and "--out" in ran.err
    assert mnemos("train", "router", "--model", str(model), "--data", str(tmp_path / "no.jsonl")).code == 1


def test_an_msa_checkpoint_is_written_as_another(mnemos: Command, data: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "msa", tmp_path / "trained"
    write_scripted_msa(source, {})
    arguments = ("train", "router", "--model", str(source), "--data", str(data), "--epochs", "1")
    assert mnemos(*arguments).code == 2, "a directory has to be named"
    assert mnemos(*arguments, "--out", str(source)).code == 2
    assert mnemos(*arguments, "--out", str(out), "--learning-rate", "0").code == 2
    assert mnemos(*arguments, "--out", str(out), "--filler", str(data)).code == 2
    assert not out.exists()
    ran = mnemos(*arguments, "--out", str(out), "--force", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["path"] == str(out) and ran.json["layers"] == [1, 2] and len(ran.json["tensors"]) == 4
    assert set(ran.json["recall"]) == {"untrained", "trained"} and "reencode" in ran.err
    assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert (
        mnemos("train", "router", "--model", str(out), "--data", str(tmp_path / "no"), "--out", "x").code == 1
    )
