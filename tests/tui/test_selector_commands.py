"""`--where`, and the care for selectors that take everything."""

import pytest
from tests.tui.conftest import Command, OpenTerminal

TEXTS = ("Clara sails", "the boat is green", "breakfast at seven")


@pytest.fixture
def filled(mnemos: Command) -> Command:
    mnemos("remember", TEXTS[0], "--tag", "family", "--tag", "work")
    mnemos("remember", TEXTS[1], "--tag", "work")
    mnemos("remember", TEXTS[2])
    return mnemos


def listed(mnemos: Command, *args: str, stdin: str = "") -> list[str]:
    ran = mnemos("memory", "list", "--json", "--oldest", *args, stdin=stdin)
    assert ran.code == 0, ran.err
    return [memory["text"] for memory in ran.json["memories"]]


def test_list_and_forget_take_the_same_selector(filled: Command, tmp_path: object) -> None:
    where = 'tag:work and not match:"CLARA" or match:seven'
    assert listed(filled, "--where", where) == [TEXTS[1], TEXTS[2]]
    assert listed(filled, "--where", "-", stdin=where + "\n") == [TEXTS[1], TEXTS[2]]
    assert listed(filled, "--where", where, "--tag", "work") == [TEXTS[1]]
    assert listed(filled, "--where", "is:pinned or before:2001-01-01") == []
    plan = filled("memory", "forget", "--where", where, "--dry-run", "--json").json
    assert [memory["text"] for memory in plan["selected"]] == [TEXTS[1], TEXTS[2]]
    assert (plan["takes_all"], plan["likes"], plan["namespace"]) == (False, [], "default")
    assert plan["token"].startswith("m-")
    ran = filled("memory", "forget", "--where", where, "--yes", "--json")
    assert len(ran.json["forgotten"]) == 2 and ran.json["likes"] == []
    assert listed(filled) == [TEXTS[0]]


def test_a_source_is_found_by_its_relative_path(
    filled: Command, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path))
    (folder / "page.txt").write_text("from a page")
    filled("ingest", str(folder / "page.txt"))
    monkeypatch.chdir(folder)
    assert listed(filled, "--where", "source:page.txt") == ["from a page"]
    assert listed(filled, "--where", "not source:page.txt") == list(TEXTS)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["forget", "--where", "tag:work and", "--yes"], 2, "at character 13"),
        (["list", "--where", "quincetree"], 2, "at character 1"),
        (["list", "--where", ""], 2, "at character 1"),
        (["list", "--where", "session:zzzzzz"], 1, "session"),
        (["forget", "--where", "tag:nobody", "--yes"], 1, "nothing in 'default' matches"),
        (["forget", "--where", "-", "--match", "-", "--yes"], 2, "once"),
        (["forget", "--where", "not tag:nobody", "--yes"], 2, "--confirm default"),
        (["forget", "--where", "not tag:nobody", "--yes", "--confirm", "other"], 2, "--confirm default"),
        (["forget", "--where", "tag:work"], 2, "--yes"),
    ],
)
def test_what_is_refused(shared: Command, args: list[str], code: int, says: str) -> None:
    if not shared.bank.exists():
        shared.remember(*TEXTS)
    ran = shared("memory", *args)
    assert (ran.code, ran.out) == (code, "")
    assert says in ran.err and "quincetree" not in ran.err
    assert len(listed(shared)) == 3


def test_conditions_that_take_everything_are_confirmed_by_name(filled: Command) -> None:
    plan = filled("memory", "forget", "--where", "since:1d", "--dry-run", "--json").json
    assert plan["takes_all"]
    assert filled("memory", "forget", "--since", "1d", "--yes").code == 2
    assert len(listed(filled)) == 3
    ran = filled("memory", "forget", "--where", "since:1d", "--yes", "--confirm", "default", "--json")
    assert len(ran.json["forgotten"]) == 3 and not ran.json["receipt"]["whole_namespace"]


def test_on_a_terminal_they_ask_for_the_name(filled: Command, open_terminal: OpenTerminal) -> None:
    for answer, code in (("y\n", 1), ("default\n", 0)):
        terminal = open_terminal(filled, "memory", "forget", "--where", "not tag:nobody")
        terminal.wait_for("that is every memory in 'default'")
        terminal.wait_for("Type the namespace's name")
        terminal.type(answer)
        assert terminal.end() == code
    assert listed(filled) == []


@pytest.mark.model
def test_like_shows_scores_and_threshold(mnemos: Command) -> None:
    pet, *_ = mnemos.remember(
        "My dog is called Biscuit.",
        "My sister Clara works as a nurse in Leeds.",
        "I am allergic to peanuts.",
        "My brother Tom lives in Oslo.",
        "I play the cello in an amateur orchestra.",
    )
    ran = mnemos("memory", "forget", "--where", 'like:"What is my pet called?"@1.2', "--dry-run")
    assert ran.code == 0, ran.err
    what, score, memory, _ = ran.out.splitlines()[0].split("\t")
    assert (what, memory) == ("forget", pet) and float(score) >= 1.2
    assert "1 of 5 memories score 1.20 or more" in ran.err
    ran = mnemos("memory", "forget", "--where", 'like:"What is my pet called?"', "--yes")
    assert ran.code == 1 and "0 of 5 memories score 3.70 or more, the best at" in ran.err
    ran = mnemos("memory", "forget", "--where", 'like:"What is my pet called?"@1.2', "--yes", "--json")
    assert ran.json["forgotten"] == [pet] and "pet" not in ran.out
    assert [set(like) for like in ran.json["likes"]] == [{"threshold", "scored", "unscored", "best", "hits"}]
