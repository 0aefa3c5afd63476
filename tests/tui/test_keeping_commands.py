"""`memory edit`, `expire`, `retention` and `sweep`."""

from datetime import UTC, datetime, timedelta

import pytest
from tests.tui.conftest import Command, OpenTerminal
from tests.tui.test_forget_command import bytes_of

OLD, NEW = "Clara lives in quincetree lane", "Clara lives in medlar lane"


def test_edit_puts_other_words_in_place(mnemos: Command) -> None:
    old = mnemos("remember", OLD, "--tag", "family", "--title", "Clara", "--json").json["id"]
    mnemos("memory", "pin", old)
    ran = mnemos("memory", "edit", old[:8], "-", "--yes", "--json", stdin=NEW + "\n")
    assert ran.code == 0, ran.err
    memory = ran.json["memory"]
    assert (memory["text"], memory["tags"], memory["title"], memory["pinned"]) == (
        NEW,
        ["family"],
        "Clara",
        True,
    )
    assert ran.json["rewritten"] == {old: memory["id"]} == ran.json["receipt"]["rewritten"]
    assert mnemos("memory", "show", old).code == 1
    assert b"quincetree" not in bytes_of(mnemos.bank).lower() and "quincetree" not in ran.out
    assert mnemos("memory", "search", "medlar", "--router", "lexical", "--json").json["results"]
    assert mnemos("bank", "verify", "--deep", "--json").json["ok"]


def test_what_edits_nothing(mnemos: Command) -> None:
    (memory,) = mnemos.remember(OLD)
    for args, code, says in (
        ([memory, NEW], 2, "--yes"),
        ([memory, "", "--yes"], 2, "text"),
        ([memory, OLD, "--yes"], 2, "already"),
        (["zzzzzzzz", NEW, "--yes"], 1, "zzzzzzzz"),
        ([memory, "x" * 70_000, "--yes"], 2, "bytes"),
    ):
        ran = mnemos("memory", "edit", *args)
        assert (ran.code, ran.out) == (code, ""), ran.err
        assert says in ran.err
    plan = mnemos("memory", "edit", memory, NEW, "--dry-run", "--json").json
    assert [each["id"] for each in plan["selected"]] == [memory]
    assert mnemos("memory", "show", memory, "--json").json["memory"]["text"] == OLD


def test_edit_asks(mnemos: Command, open_terminal: OpenTerminal) -> None:
    (memory,) = mnemos.remember(OLD)
    for answer, code in (("n\n", 1), ("y\n", 0)):
        terminal = open_terminal(mnemos, "memory", "edit", memory, NEW)
        terminal.wait_for("[y/N]")
        assert OLD in terminal.seen
        terminal.type(answer)
        assert terminal.end() == code
    (left,) = mnemos("memory", "list", "--json").json["memories"]
    assert left["text"] == NEW


def test_expire(mnemos: Command) -> None:
    (memory,) = mnemos.remember(OLD)
    ran = mnemos("memory", "expire", memory, "--in", "2w", "--json")
    ends = datetime.fromisoformat(ran.json["memory"]["expires_at"])
    assert abs(ends - datetime.now(UTC) - timedelta(days=14)) < timedelta(minutes=2)
    ran = mnemos("memory", "expire", memory, "--at", "2999-01-01T00:00+00:00", "--json")
    assert ran.json["memory"]["expires_at"] == "2999-01-01T00:00:00Z"
    assert mnemos("memory", "expire", memory, "--never", "--json").json["memory"]["expires_at"] is None
    for args, code in (
        ([], 2),
        (["--never", "--in", "2w"], 2),
        (["--at", "2020-01-01"], 2),
        (["--in", "soon"], 2),
        (["--in", "0d"], 2),
    ):
        assert mnemos("memory", "expire", memory, *args).code == code, args
    assert mnemos("memory", "expire", "zzzzzzzz", "--never").code == 1
    assert mnemos("memory", "show", memory).code == 0


def test_retention_is_set_shown_and_swept(mnemos: Command) -> None:
    mnemos.remember("one", "two", "three")
    assert mnemos("memory", "retention", "--json").json == {
        "namespace": "default",
        "max_age_s": None,
        "max_bytes": None,
        "max_memories": None,
    }
    ran = mnemos("memory", "retention", "--max-age", "90d", "--max-bytes", "2MB", "--json")
    assert (ran.json["max_age_s"], ran.json["max_bytes"]) == (90 * 86_400, 2_000_000)
    assert mnemos("memory", "retention", "--max-age", "none", "--json").json["max_age_s"] is None
    ran = mnemos("memory", "retention", "--max-memories", "2")
    assert ran.code == 2 and "--yes" in ran.err
    plan = mnemos("memory", "retention", "--max-memories", "2", "--dry-run", "--json").json
    assert [memory["text"] for memory in plan["selected"]] == ["one"]
    assert mnemos("memory", "retention", "--json").json["max_memories"] is None
    assert mnemos("memory", "retention", "--max-memories", "2", "--yes").code == 0
    texts = [memory["text"] for memory in mnemos("memory", "list", "--json").json["memories"]]
    assert texts == ["three", "two"]
    mnemos.remember("four")
    plan = mnemos("memory", "sweep", "--dry-run", "--json").json
    assert [memory["text"] for memory in plan["selected"]] == ["two"]
    ran = mnemos("memory", "sweep", "--json")
    assert len(ran.json["forgotten"]) == 1 and ran.json["receipt"]["memories"] == 1
    assert mnemos("memory", "sweep", "--json").json == {"forgotten": [], "dependants": [], "receipt": None}
    mnemos.remember("five")
    assert len(mnemos("memory", "list", "--json").json["memories"]) == 2, "an opening sweeps too"
    assert mnemos("bank", "verify", "--deep", "--json").json["ok"]


@pytest.mark.parametrize(
    "args",
    [
        ["--max-age", "old"],
        ["--max-age", "0d"],
        ["--max-bytes", "5 potatoes"],
        ["--max-bytes", "0"],
        ["--max-memories", "-1"],
        ["--max-memories", "0"],
    ],
)
def test_limits_that_can_not_be(shared: Command, args: list[str]) -> None:
    if not shared.bank.exists():
        shared.remember("one")
    ran = shared("memory", "retention", *args, "--yes")
    assert (ran.code, ran.out) == (2, "")
    assert shared("memory", "retention", "--json").json["max_memories"] is None


def test_nobody_is_asked_about_limits_in_vain(mnemos: Command, open_terminal: OpenTerminal) -> None:
    mnemos.remember("one", "two")
    for answer, code in (("n\n", 1), ("y\n", 0)):
        terminal = open_terminal(mnemos, "memory", "retention", "--max-memories", "1")
        terminal.wait_for("[y/N]")
        terminal.type(answer)
        assert terminal.end() == code
    assert [memory["text"] for memory in mnemos("memory", "list", "--json").json["memories"]] == ["two"]
