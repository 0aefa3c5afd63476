"""`mnemos session list`, `rename`, `branch`, `delete`, and `memory quota`."""

import pytest
from tests.tui.conftest import Command, OpenTerminal

from mnemos import MemoryBank
from mnemos.memory.records import Memory
from mnemos.store.records import SessionRecord


def conversation(
    mnemos: Command, monkeypatch: pytest.MonkeyPatch, *texts: str
) -> tuple[SessionRecord, list[Memory]]:
    """A session of the texts, each with a reply."""
    monkeypatch.setenv("MNEMOS_KEY_DIR", mnemos.environment["MNEMOS_KEY_DIR"])
    with MemoryBank.open(mnemos.bank) as bank:
        session = bank.create_session(title="Plans")
        made = []
        for text in texts:
            exchange = bank.begin_exchange(text, namespace="default", session_id=session.id)
            made.append(bank.complete_exchange(exchange, "Noted."))
        return bank.get_session(session.id), made


def test_list_rename_and_branch(mnemos: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    session, (first, _) = conversation(mnemos, monkeypatch, "one", "two")
    ran = mnemos("session", "branch", session.id[:8], "--at", first.id[:8], "--title", "Other", "--json")
    assert ran.code == 0, ran.err
    branch = ran.json["session"]
    assert (branch["parent_id"], branch["turns"], branch["title"]) == (session.id, 1, "Other")
    assert mnemos("session", "rename", branch["id"], "-", stdin="A café plan\n").code == 0
    listed = {each["id"]: each for each in mnemos("session", "list", "--json").json["sessions"]}
    assert listed[branch["id"]]["title"] == "A café plan"
    assert (listed[session.id]["turns"], listed[session.id]["parent_id"]) == (2, None)
    rows = [line.split("\t") for line in mnemos("session", "list").out.splitlines()]
    assert {row[0] for row in rows} == set(listed) and {row[3] for row in rows} == {"-", session.id}
    printed = mnemos("session", "branch", session.id)
    assert printed.code == 0 and len(printed.out.strip()) == 26


def test_delete_with_memories_asks_and_without_leaves_them(
    mnemos: Command, open_terminal: OpenTerminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, _ = conversation(mnemos, monkeypatch, "one", "two")
    assert mnemos("session", "delete", session.id).code == 2
    assert mnemos("session", "delete", session.id, "--with-memories", "--keep-memories").code == 2
    assert mnemos("session", "delete", session.id, "--keep-memories", "--dry-run").code == 2
    ran = mnemos("session", "delete", session.id, "--with-memories")
    assert (ran.code, ran.out) == (2, "") and "--yes" in ran.err
    plan = mnemos("session", "delete", session.id, "--with-memories", "--dry-run", "--json").json
    assert len(plan["selected"]) == 2
    terminal = open_terminal(mnemos, "session", "delete", session.id, "--with-memories")
    terminal.wait_for("[y/N]")
    terminal.type("n\n")
    assert terminal.end() == 1
    kept = mnemos("session", "delete", session.id, "--keep-memories", "--json")
    assert kept.json == {"session": session.id, "forgotten": None}
    assert mnemos("session", "list", "--json").json == {"sessions": []}
    assert len(mnemos("memory", "list", "--json").json["memories"]) == 2
    other, made = conversation(mnemos, monkeypatch, "three")
    done = mnemos("session", "delete", other.id, "--with-memories", "--yes", "--json")
    assert done.json["forgotten"]["forgotten"] == [made[0].id]
    assert len(mnemos("memory", "list", "--json").json["memories"]) == 2
    assert mnemos("bank", "verify", "--deep", "--json").json["ok"]


def test_what_can_not_be(mnemos: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    session, _ = conversation(mnemos, monkeypatch, "one")
    (note,) = mnemos.remember("no exchange")
    for args, code, says in (
        (["rename", session.id, " "], 2, "empty"),
        (["rename", "zzzzzz", "x"], 1, "zzzzzz"),
        (["branch", session.id, "--at", note], 2, "no exchange of session"),
        (["branch", "zzzzzz"], 1, "zzzzzz"),
        (["delete", "zzzzzz", "--keep-memories"], 1, "zzzzzz"),
        (["list", "--namespace", "../x"], 2, "namespace"),
    ):
        ran = mnemos("session", *args)
        assert (ran.code, ran.out) == (code, ""), ran.err
        assert says in ran.err


def test_a_quota_is_shown_set_and_held(mnemos: Command) -> None:
    mnemos.remember("one")
    none = {"namespace": "default", "memories": None, "text_bytes": None, "turns_per_day": None}
    assert mnemos("memory", "quota", "--json").json == none
    made = mnemos("memory", "quota", "--memories", "1", "--text", "2kB", "--json")
    assert made.json == none | {"memories": 1, "text_bytes": 2000}
    refused = mnemos("remember", "two")
    assert (refused.code, refused.out) == (1, "") and "quota is 1 memories" in refused.err
    assert mnemos("memory", "quota", "--memories", "none", "--json").json == none | {"text_bytes": 2000}
    assert mnemos("remember", "two").code == 0
    assert mnemos("memory", "quota", "--memories", "few").code == 2
    assert "text_bytes\t2000" in mnemos("memory", "quota").out
