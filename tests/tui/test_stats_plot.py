"""`memory stats --plot` and `memory list --sort` on a real bank."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.tui.conftest import Command

from mnemos.errors import MnemosError, NotFoundError, UsageError

_PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def filled(mnemos: Command) -> Command:
    mnemos.remember("short", "the longest of all these words", "middling words")
    return mnemos


def size_of(picture: bytes) -> tuple[int, int]:
    return int.from_bytes(picture[16:20], "big"), int.from_bytes(picture[20:24], "big")


def test_a_picture_is_drawn_beside_the_figures(filled: Command, tmp_path: Path) -> None:
    picture = tmp_path / "growth.png"
    ran = filled("memory", "stats", "--plot", str(picture), "--json")
    assert ran.code == 0 and ran.json["memories"] == 3 and "drawn to" in ran.err
    data = picture.read_bytes()
    assert data.startswith(_PNG) and size_of(data) == (1200, 840)
    assert b"longest" not in data

    again = filled("memory", "stats", "--plot", str(picture))
    assert again.code == UsageError.exit_code and "--overwrite" in again.err
    assert filled("memory", "stats", "--plot", str(picture), "--overwrite").code == 0
    assert [path.name for path in tmp_path.glob("*.p*")] == ["growth.png"]


def test_a_picture_that_cannot_be_made_says_why(filled: Command, tmp_path: Path) -> None:
    for options, code, said in (
        (["--plot", "growth.jpg"], UsageError.exit_code, "growth.png"),
        (["--plot", str(tmp_path / "a.png"), "--all"], UsageError.exit_code, "--namespace"),
        (["--plot", str(tmp_path / "no" / "a.png")], MnemosError.exit_code, "can't be written"),
        (["--plot", str(tmp_path / "a.png"), "--namespace", "other"], NotFoundError.exit_code, "other"),
    ):
        ran = filled("memory", "stats", *options)
        assert ran.code == code and said in ran.err, ran.err
    assert not list(tmp_path.glob("**/*.png"))


def test_without_matplotlib_it_names_the_extra(filled: Command, tmp_path: Path) -> None:
    blocked = "import sys; sys.modules['matplotlib'] = None\nfrom mnemos.tui.main import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", blocked, "memory", "stats", "--plot", str(tmp_path / "a.png")],
        capture_output=True,
        env=filled.environment,
        timeout=120,
    )
    assert ran.returncode == MnemosError.exit_code and b"pip install 'mnemos[plot]'" in ran.stderr
    assert ran.stdout == b""


def test_lists_are_sorted(filled: Command) -> None:
    def listed(*options: str) -> list[str]:
        memories = filled("memory", "list", "--json", *options).json["memories"]
        return [memory["text"].split()[0] for memory in memories]

    assert listed() == listed("--sort", "created") == ["middling", "the", "short"]
    assert listed("--sort", "size") == ["the", "middling", "short"]
    assert listed("--sort", "size", "--oldest", "--limit", "2") == ["short", "middling"]
    assert listed("--sort", "size", "--match", "words") == ["the", "middling"]
    assert listed("--sort", "uses", "--where", "match:short") == ["short"]
    assert filled("memory", "list", "--sort", "colour").code == UsageError.exit_code
