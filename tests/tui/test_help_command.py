"""The manual on the command line; quiet commands; one JSON object a line."""

import json

import pytest
import typer
from tests.tui.conftest import Command

from mnemos.errors import NotFoundError
from mnemos.tui.help import find, manual
from mnemos.tui.main import app


def names_of(command: typer.core.TyperGroup, above: str = "") -> list[str]:
    found: list[str] = []
    for name, child in command.commands.items():
        found += names_of(child, f"{above}{name} ") if hasattr(child, "commands") else [f"{above}{name}"]
    return found


def test_every_command_has_its_section(mnemos: Command) -> None:
    topics = mnemos("help", "--json").json["topics"]
    for name in names_of(typer.main.get_command(app)):  # type: ignore[arg-type]
        assert name in topics
        assert mnemos("help", *name.split(), "--json").json["text"]


@pytest.mark.parametrize(
    "topic", ["selectors", "Exit codes", "exit", "mnemos memory forget", "memory forget"]
)
def test_a_topic_is_found_by_its_words(mnemos: Command, topic: str) -> None:
    assert mnemos("help", *topic.split()).out.startswith("## ")


def test_a_heading_without_words_points_on() -> None:
    title, words = find(manual(), "looking and forgetting")
    assert title == "Looking and forgetting" and "memory list" in words


@pytest.mark.parametrize(("topic", "said"), [("zeppelin", "no topic"), ("bank", "bank rekey")])
def test_what_is_no_topic_names_what_comes_near(mnemos: Command, topic: str, said: str) -> None:
    ran = mnemos("help", topic)
    assert ran.code == NotFoundError.exit_code and said in ran.err and not ran.out


def test_one_object_a_line(mnemos: Command) -> None:
    for text in ("the kettle is blue", "the boat\nis red"):
        assert mnemos("remember", text).code == 0
    whole = mnemos("memory", "list", "--json").json["memories"]
    assert [json.loads(line) for line in mnemos("memory", "list", "--jsonl").out.splitlines()] == whole
    found = mnemos("memory", "search", "kettle", "--router", "lexical", "--jsonl").out.splitlines()
    assert [json.loads(line)["text"] for line in found] == ["the kettle is blue"]
    assert mnemos("memory", "forget", "--match", "kettle", "--yes").code == 0
    (receipt,) = mnemos("memory", "receipt", "list", "--jsonl").out.splitlines()
    assert json.loads(receipt) == mnemos("memory", "receipt", "list", "--json").json["receipts"][0]
    lines = mnemos("bank", "audit", "--jsonl").out.splitlines()
    assert [json.loads(line)["seq"] for line in lines] == sorted(json.loads(line)["seq"] for line in lines)


def test_quiet_says_errors_alone(mnemos: Command) -> None:
    assert "made a new bank" in mnemos("remember", "the kettle is blue", "--bank", f"{mnemos.bank}-2").err
    ran = mnemos("--quiet", "remember", "the kettle is blue")
    assert ran.code == 0 and ran.err == "" and ran.out
    failed = mnemos("--quiet", "memory", "show", "zzzz")
    assert failed.code == 1 and failed.err.startswith("error: ")
    assert (
        mnemos("bank", "info").code == 0
        and "back up" in mnemos("remember", "x", "--bank", f"{mnemos.bank}-3").err
    )
