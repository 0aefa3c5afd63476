"""`mnemos bench attention` as a person runs it."""

import json
from pathlib import Path

import pytest
from tests.tui.conftest import Command

from mnemos.errors import UsageError
from mnemos.tui.bench_attention import length_of

CLI = Path(__file__).resolve().parents[2] / "docs" / "cli.md"


def test_table_json_and_picture(mnemos: Command, tmp_path: Path) -> None:
    options = ["--patterns", "linear", "--needle-steps", "0", "--repetitions", "1", "--threads", "1"]
    picture = tmp_path / "patterns.png"
    ran = mnemos("bench", "attention", "--lengths", "256", *options, "--plot", str(picture), "--json")
    assert ran.code == 0, ran.err
    assert picture.read_bytes().startswith(b"\x89PNG")
    words = (
        CLI.read_text(encoding="utf-8").partition("### `mnemos bench attention`")[2].partition("\n### ")[0]
    )
    for field in [*ran.json, *ran.json["patterns"]["linear"]]:
        assert f"`{field}`" in words, field
    table = mnemos("bench", "attention", "--lengths", "256", *options)
    rows = [line.split("\t") for line in table.out.splitlines()]
    assert [row[0] for row in rows] == ["dense", "linear"] and rows[0][5] == "O(n^2)"
    assert json.dumps(ran.json)


def test_lengths(mnemos: Command) -> None:
    assert [length_of(word) for word in ("512", "2k", " 32K", "1m")] == [512, 2048, 32768, 1048576]
    for word in ("", "k", "0", "-4", "2.5k", "1g"):
        with pytest.raises(UsageError, match="no length"):
            length_of(word)
    ran = mnemos("bench", "attention", "--lengths", "1k,many")
    assert ran.code == 2 and "'many'" in ran.err
