"""Whatever is handed to the command: one line that says what is wrong, an exit code, and nothing lost."""

import os
import subprocess
from pathlib import Path

import pytest
from tests.tui.conftest import SCRIPT, Command

NAMES = ["", " ", "a b", "../up", "a//b", ".", "a/../b", "ä", "x" * 129, "a\nb", "/a", "a/"]


@pytest.mark.parametrize("name", NAMES)
def test_a_namespace_that_may_not_be(mnemos: Command, name: str) -> None:
    ran = mnemos("remember", "text", "--namespace", name, "--json")
    assert ran.code == 2
    assert ran.json["error"]["type"] == "InvalidNamespaceError"
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize(
    "args",
    [
        ["memory", "list"],
        ["memory", "show", "abcdefgh"],
        ["memory", "search", "x", "--router", "lexical"],
        ["memory", "forget", "--match", "x", "--yes"],
        ["memory", "stats"],
        ["bank", "info"],
        ["bank", "verify"],
    ],
    ids=lambda args: " ".join(args[:2]),
)
def test_a_bank_that_is_not_there_is_not_made_by_looking(mnemos: Command, args: list[str]) -> None:
    ran = mnemos(*args, "--json")
    assert (ran.code, ran.json["error"]["type"]) == (1, "NotFoundError")
    assert not mnemos.bank.exists()


def test_a_directory_that_is_no_bank(mnemos: Command, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"x")
    assert mnemos("remember", "text", "--bank", str(tmp_path / "photos")).code == 3
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]
    assert mnemos("memory", "list", "--bank", str(tmp_path / "photos" / "cat.jpg")).code == 3


@pytest.mark.parametrize("place", ["/proc/mnemos-bank", "/dev/null/bank"])
def test_a_place_that_cannot_be_written(mnemos: Command, place: str) -> None:
    ran = mnemos("remember", "text", "--bank", place)
    assert ran.code == 3
    assert ran.err.startswith("error: ") and ran.err.count("\n") == 1


def test_a_key_that_is_gone(mnemos: Command, tmp_path: Path) -> None:
    mnemos.remember("text")
    for key in (tmp_path / "keys").iterdir():
        key.unlink()
    ran = mnemos("memory", "list", "--json")
    assert (ran.code, ran.json["error"]["type"]) == (3, "BankKeyError")


@pytest.mark.parametrize("command", ["remember", pytest.param("ask", marks=pytest.mark.model)])
@pytest.mark.parametrize("text", [b"", b"\n", b" \n\t\n"])
def test_an_empty_text(mnemos: Command, command: str, text: bytes) -> None:
    ran = mnemos(command, "-", "--json", stdin=text)
    assert (ran.code, ran.json["error"]["type"]) == (2, "InvalidTextError")


@pytest.mark.parametrize("router", ["lexical", "full"])
@pytest.mark.parametrize("query", ["", " \n\t\u3000"])
def test_a_query_without_a_word(mnemos: Command, router: str, query: str) -> None:
    """Told before a model is loaded."""
    mnemos.remember("text")
    ran = mnemos("memory", "search", query, "--router", router, "--json")
    assert (ran.code, ran.json["error"]["type"]) == (2, "InvalidTextError")


@pytest.mark.parametrize("megabytes", [10, 17])
def test_a_text_of_many_megabytes(mnemos: Command, megabytes: int) -> None:
    ran = mnemos("remember", "-", "--json", stdin=b"word " * (megabytes * 200_000))
    assert (ran.code, ran.json["error"]["type"]) == (2, "InvalidTextError")
    assert "word" not in ran.err


@pytest.mark.model
def test_a_message_of_ten_megabytes(mnemos: Command) -> None:
    ran = mnemos("ask", "-", "--json", stdin=b"word " * 2_000_000)
    assert (ran.code, ran.json["error"]["type"]) == (2, "InvalidTextError")
    assert "word" not in ran.err
    assert mnemos("memory", "list", "--json").json["memories"] == []


@pytest.mark.parametrize(
    "command", [["remember"], ["ask"], ["memory", "search"], ["memory", "forget", "--yes", "--match"]]
)
def test_what_is_not_utf8(mnemos: Command, command: list[str]) -> None:
    mnemos.remember("text")
    ran = mnemos(*command, "-", "--json", stdin=b"caf\xe9 au lait")
    assert (ran.code, ran.json["error"]["type"]) == (2, "InvalidTextError")
    assert "lait" not in ran.err
    assert mnemos(*command, b"caf\xe9 au lait").code == 2


def test_control_characters_are_kept_as_they_are(mnemos: Command) -> None:
    text = "bell \a escape \x1b[31m tab\tend \x9b \u202e"
    made = mnemos("remember", "-", "--json", stdin=text).json["id"]
    assert mnemos("memory", "show", made, "--json").json["memory"]["text"] == text
    columns = mnemos("memory", "list").out
    assert "\x1b" not in columns and columns.count("\n") == 1


def test_a_nul_is_kept_or_refused(mnemos: Command) -> None:
    ran = mnemos("remember", "-", "--json", stdin="before \0 after")
    if ran.code == 0:
        assert mnemos("memory", "show", ran.json["id"], "--json").json["memory"]["text"] == "before \0 after"
    else:
        assert (ran.code, ran.json["error"]["type"]) == (2, "InvalidTextError")


@pytest.mark.parametrize("model", ["no-such-model", "./none.gguf", "/nonexistent/dir"])
def test_a_model_that_is_not_known(mnemos: Command, model: str) -> None:
    ran = mnemos("ask", "Hello?", "--model", model, "--json")
    assert (ran.code, ran.json["error"]["type"]) == (1, "UnknownModelError")
    assert mnemos("model", "show", model).code == 1


def test_a_model_file_that_is_none(mnemos: Command, tmp_path: Path) -> None:
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"GGUF" + bytes(range(200)))
    ran = mnemos("ask", "Hello?", "--model", str(path), "--json")
    assert (ran.code, ran.json["error"]["type"]) == (1, "InvalidWeightsError")


@pytest.mark.parametrize(
    "args",
    [
        ["remember"],
        ["remember", "a", "b"],
        ["frobnicate"],
        ["memory", "list", "--limit", "0"],
        ["memory", "list", "--limit", "x"],
        ["memory", "search", "x", "--router", "psychic"],
        ["memory", "list", "--since", "soon"],
        ["ask", "--no-such-option", "x"],
        ["bench", "paging", "--memories", "0"],
    ],
    ids=" ".join,
)
def test_a_command_line_that_is_wrong(mnemos: Command, args: list[str]) -> None:
    mnemos.remember("text")
    ran = mnemos(*args, "--json")
    assert (ran.code, set(ran.json["error"])) == (2, {"type", "message"})
    assert ran.err.startswith("error: ") and ran.err.count("\n") == 1
    assert mnemos(*args).out == ""


@pytest.mark.parametrize(
    "args", [["ask", "x", "--session", "zzzzzzzz"], ["memory", "list", "--session", "zzzzzzzz"]]
)
def test_a_session_that_is_not_there(mnemos: Command, args: list[str]) -> None:
    mnemos.remember("text")
    assert mnemos(*args).code == 1


@pytest.mark.parametrize("group", [[], ["memory"], ["bank"], ["model"], ["bench"]])
def test_a_group_without_a_command_shows_its_help(mnemos: Command, group: list[str]) -> None:
    ran = mnemos(*group)
    assert (ran.code, ran.out) == (2, "")
    assert "Commands:" in ran.err and "error: a command is missing" in ran.err


def test_a_reader_that_leaves_early(mnemos: Command) -> None:
    mnemos.remember(*(f"line {number}" for number in range(3)))
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [SCRIPT, "memory", "list"], stdout=writing, stderr=subprocess.PIPE, env=dict(mnemos.environment)
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")
