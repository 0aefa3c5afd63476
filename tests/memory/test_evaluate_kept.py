"""Kept banks of an evaluation: a place that can't be used is told, a run that ended badly is made good."""

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mnemos.attention.models import LanguageModel
from mnemos.errors import BankFullError, BankLockedError, UsageError
from mnemos.memory import evaluate_recall
from mnemos.memory.bank import MemoryBank
from mnemos.memory.evaluate_kept import Place, kept_for_one_run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two conversations of a question each."""
    path = tmp_path / "talks.jsonl"
    with path.open("w", encoding="utf-8") as lines:
        for fruit in ("quince", "medlar"):
            memories = [{"id": "a", "text": f"The {fruit} is ripe."}, {"id": "b", "text": "It rains."}]
            question = {"question": f"Is the {fruit} ripe?", "evidence": ["a"]}
            lines.write(json.dumps({"id": fruit, "memories": memories, "questions": [question]}) + "\n")
    return path


def lexical(data: Path, kept: Path) -> dict[str, Any]:
    return evaluate_recall.run(data, model=None, router="lexical", ks=[1], kept=kept)


def test_a_place_that_is_no_directory(data: Path) -> None:
    for place in (data, data / "below", Path("/proc/none/below")):
        with pytest.raises(UsageError, match="--path"):
            lexical(data, place)
    assert data.is_file()


def test_one_run_at_a_time(data: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    with kept_for_one_run(kept), pytest.raises(BankLockedError, match="Another run"):
        lexical(data, kept)
    assert lexical(data, kept)["hit"] == {"1": 1.0}, "who is done lets others go on"


@pytest.mark.parametrize("part", ["remember_many", "keep"])
def test_a_run_that_ended_before_its_memories_were_listed_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """As after a kill: what is there was never listed."""
    kept = tmp_path / "kept"
    owner: Any = Place if part == "keep" else MemoryBank
    real, calls = getattr(owner, part), list[object]()

    def killed(self: Any, given: Any, **named: Any) -> Any:
        if part == "keep" and not given:  # the mark of a beginning
            return real(self, given)
        calls.append(given)
        made = real(self, given, **named) if part == "remember_many" or len(calls) < 2 else None
        if len(calls) == 2:
            raise KeyboardInterrupt
        return made

    with monkeypatch.context() as patched:
        patched.setattr(owner, part, killed)
        with pytest.raises(KeyboardInterrupt):
            lexical(data, kept)
    assert (kept / "00001" / "bank").is_dir()
    for _ in range(2):
        again = lexical(data, kept)
        assert again["memories"] == 4 and again["hit"] == {"1": 1.0}


def test_a_torn_list_can_not_come_of_a_kill(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list is written beside, and takes its place when it is whole."""
    kept = tmp_path / "kept"
    real = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if '"0"' in self.read_text():
            raise KeyboardInterrupt
        return real(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            lexical(data, kept)
    assert lexical(data, kept)["memories"] == 4


def test_a_bank_or_a_key_that_went_missing_is_told(data: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    lexical(data, kept)
    (kept / "00001" / "bank.key").unlink()
    with pytest.raises(UsageError, match="00001 has lost"):
        lexical(data, kept)
    assert (kept / "00001" / "bank").is_dir(), "nothing is removed that was whole once"


def test_banks_that_another_model_read(data: Path, tmp_path: Path, tiny_model: LanguageModel) -> None:
    kept = tmp_path / "kept"
    measured = evaluate_recall.run(data, model=tiny_model, ks=[1, 2], kept=kept)
    other = dataclasses.replace(tiny_model, fingerprint="0" * 64, name="other")
    with pytest.raises(UsageError, match=r"00000 was read by another model.*--path"):
        evaluate_recall.run(data, model=other, ks=[1, 2], kept=kept)
    assert evaluate_recall.run(data, model=tiny_model, ks=[1, 2], kept=kept)["recall"] == measured["recall"]
    assert lexical(data, kept)["hit"] == {"1": 1.0}, "words need no model"


def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    """With room again the run goes on."""
    path, disk = tmp_path / "talk.jsonl", tmp_path / "disk"
    memories = [{"id": str(at), "text": f"quince {at} {'x' * 30_000}"} for at in range(200)]
    talk = {"memories": memories, "questions": [{"question": "Which quince?", "evidence": ["7"]}]}
    path.write_text(json.dumps(talk) + "\n", encoding="utf-8")
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system can't be mounted here")
    try:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(35 << 20))
        for _ in range(2):
            with pytest.raises(BankFullError, match="room"):
                lexical(path, disk / "kept")
        ballast.unlink()
        assert lexical(path, disk / "kept")["memories"] == 200
    finally:
        subprocess.run(["umount", str(disk)], check=True)
