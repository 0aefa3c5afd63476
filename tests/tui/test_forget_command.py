"""`memory forget`: selectors, plan, question, receipt. What is forgotten is in no file of the bank."""

import time
from pathlib import Path

import pytest
from tests.tui.conftest import Command, OpenTerminal

SECRET = "The spare key hangs under the quincetree"
OTHER = "Breakfast is at seven"


def bytes_of(folder: Path) -> bytes:
    return b"\0".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def listed(mnemos: Command) -> list[str]:
    return [memory["text"] for memory in mnemos("memory", "list", "--json").json["memories"]]


def test_forget_by_text(mnemos: Command) -> None:
    secret, other = mnemos.remember(SECRET, OTHER)
    ran = mnemos("memory", "forget", "--match", "QuinceTree", "--yes", "--json")
    assert ran.code == 0
    assert (ran.json["forgotten"], ran.json["dependants"]) == ([secret], [])
    assert secret in ran.json["receipt"]["erased"]
    assert "quince" not in (ran.out + ran.err).lower()
    assert listed(mnemos) == [OTHER]
    assert mnemos("memory", "search", "quincetree", "--router", "lexical", "--json").json == {"results": []}
    assert mnemos("memory", "show", secret).code == 1
    assert b"quincetree" not in bytes_of(mnemos.bank).lower()
    assert mnemos("bank", "verify", "--deep", "--json").json["ok"]
    assert mnemos("memory", "show", other).code == 0


def test_forget_reads_its_text_from_standard_input(mnemos: Command) -> None:
    mnemos.remember(SECRET, OTHER)
    assert mnemos("memory", "forget", "--match", "-", "--yes", stdin="quincetree\n").code == 0
    assert listed(mnemos) == [OTHER]


def test_forget_by_ids_tags_source_and_time(mnemos: Command, tmp_path: Path) -> None:
    first, second, third = mnemos.remember("one", "two", "three")
    tagged = mnemos("remember", "four", "--tag", "work", "--json").json["id"]
    page = tmp_path / "page.txt"
    page.write_text("five")
    mnemos("ingest", str(page))
    ran = mnemos("memory", "forget", "--id", first, "--id", second[:10], "--yes", "--json")
    assert sorted(ran.json["forgotten"]) == sorted([first, second])
    assert mnemos("memory", "forget", "--tag", "work", "--yes", "--json").json["forgotten"] == [tagged]
    assert mnemos("memory", "forget", "--source", str(page), "--since", "1h", "--yes").code == 0
    assert listed(mnemos) == ["three"]
    assert mnemos("memory", "forget", "--until", "2001-01-01", "--yes").code == 1
    assert mnemos("memory", "forget", "--since", "1d", "--yes", "--json").json["forgotten"] == [third]


def test_a_dry_run_touches_nothing(mnemos: Command) -> None:
    (secret,) = mnemos.remember(SECRET)
    ran = mnemos("memory", "forget", "--match", "quincetree", "--dry-run", "--json")
    assert [memory["id"] for memory in ran.json["selected"]] == [secret]
    assert (ran.json["dependants"], ran.json["cascade"]) == ([], "closure")
    assert ran.json["bytes_on_disk"] > 0
    plain = mnemos("memory", "forget", "--match", "quincetree", "--dry-run")
    assert secret in plain.out and "nothing was touched" in plain.err
    assert listed(mnemos) == [SECRET]


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["--yes"], 2, "say what to forget"),
        (["--match", "quincetree"], 2, "--yes"),
        (["--match", "xylophone", "--yes"], 1, "nothing"),
        (["--match", "", "--yes"], 2, ""),
        (["--id", "zzzzzzzzzz", "--yes"], 1, ""),
        (["--all", "--yes"], 2, "--confirm default"),
        (["--all", "--yes", "--confirm", "other"], 2, "--confirm default"),
        (["--since", "yesterweek", "--yes"], 2, "no date"),
        (["--cascade", "some", "--match", "q", "--yes"], 2, "cascade"),
        (["--match", "quincetree", "--yes", "--namespace", "nobody"], 1, ""),
    ],
)
def test_what_forgets_nothing(shared: Command, args: list[str], code: int, says: str) -> None:
    if not shared.bank.exists():
        shared.remember(SECRET)
    ran = shared("memory", "forget", *args)
    assert (ran.code, ran.out) == (code, "")
    assert says in ran.err and ran.err.startswith("error: ")
    assert listed(shared) == [SECRET]


def test_forgetting_a_namespace(mnemos: Command) -> None:
    mnemos.remember("one", "two")
    mnemos.remember(OTHER, namespace="alice")
    ran = mnemos("memory", "forget", "--all", "--yes", "--confirm", "default", "--json")
    assert len(ran.json["forgotten"]) == 2
    left = mnemos("memory", "list", "--namespace", "alice", "--json").json["memories"]
    assert [memory["text"] for memory in left] == [OTHER]


def test_the_question_answered_no(mnemos: Command, open_terminal: OpenTerminal) -> None:
    mnemos.remember(SECRET)
    for answer in ("n\n", "\n", "\x04"):
        terminal = open_terminal(mnemos, "memory", "forget", "--match", "quincetree")
        terminal.wait_for("[y/N]")
        assert "1 memory" in terminal.seen and SECRET in terminal.seen
        terminal.type(answer)
        assert terminal.end() == 1
        assert "nothing was forgotten" in terminal.seen
    assert listed(mnemos) == [SECRET]


def test_the_question_answered_yes(mnemos: Command, open_terminal: OpenTerminal) -> None:
    mnemos.remember(SECRET)
    terminal = open_terminal(mnemos, "memory", "forget", "--match", "quincetree")
    terminal.wait_for("[y/N]")
    terminal.type("y\n")
    assert terminal.end() == 0
    assert "receipt" in terminal.seen
    assert listed(mnemos) == []


def test_a_namespace_is_forgotten_by_its_name(mnemos: Command, open_terminal: OpenTerminal) -> None:
    mnemos.remember(SECRET)
    for answer, code in (("y\n", 1), ("default\n", 0)):
        terminal = open_terminal(mnemos, "memory", "forget", "--all")
        terminal.wait_for("Type the namespace's name")
        terminal.type(answer)
        assert terminal.end() == code
    assert listed(mnemos) == []


def test_ctrl_c_at_the_question(mnemos: Command, open_terminal: OpenTerminal) -> None:
    mnemos.remember(SECRET)
    terminal = open_terminal(mnemos, "memory", "forget", "--match", "quincetree")
    terminal.wait_for("[y/N]")
    time.sleep(0.3)  # a person sees the question, too, when the answer is already waited for
    terminal.interrupt()
    assert terminal.end() == 130
    assert listed(mnemos) == [SECRET]


def test_a_memory_cannot_drive_the_terminal(mnemos: Command, open_terminal: OpenTerminal) -> None:
    mnemos.remember("red \x1b[31malert\x1b[0m \x9b2J \u202edesrever")
    for args in (["memory", "list"], ["memory", "show", "--json"], ["memory", "show"]):
        if "show" in args:
            args = [*args, mnemos("memory", "list", "--json").json["memories"][0]["id"]]
        terminal = open_terminal(mnemos, *args)
        assert terminal.end() == 0
        assert "alert" in terminal.seen
        assert not any(escape in terminal.seen for escape in ("\x1b[31m", "\x9b", "\u202e"))


def test_a_table_on_a_terminal_has_short_ids(mnemos: Command, open_terminal: OpenTerminal) -> None:
    (memory,) = mnemos.remember(OTHER)
    terminal = open_terminal(mnemos, "memory", "list")
    assert terminal.end() == 0
    assert memory[:8] in terminal.seen and memory not in terminal.seen
    assert "fidelity" in terminal.seen
