"""`ask` and `chat` on the real default model: what is told in one process is known in the next."""

import json
from pathlib import Path

import pytest
from tests.tui.conftest import Command, OpenTerminal

pytestmark = pytest.mark.model

FACT = "My sister Clara works as a nurse in Leeds."
SHORT = ("--max-tokens", "12")
QUESTION = "What does my sister Clara do for a living?"


def exchanges(mnemos: Command) -> list[tuple[str, str]]:
    found = mnemos("memory", "list", "--oldest", "--json").json["memories"]
    return [(memory["text"], memory["status"]) for memory in found if memory["kind"] == "exchange"]


def test_what_is_told_is_recalled_by_another_process(mnemos: Command) -> None:
    told = mnemos.process("ask", FACT, *SHORT, "--json").json
    asked = mnemos.process("ask", QUESTION, *SHORT, "--json")
    assert asked.code == 0
    answer = asked.json
    assert {"text", "memories", "session", "exchange", "status", "stop_reason", "stored", "usage"} == set(
        answer
    )
    assert answer["session"] != told["session"]
    (memory,) = answer["memories"]
    assert (memory["id"], memory["text"], memory["rank"]) == (told["exchange"], FACT, 1)
    assert 0 <= memory["attention"] <= 1
    assert answer["usage"]["paged_tokens"] > 0 and answer["usage"]["first_token_ms"] > 0
    why = mnemos("memory", "why", "--json").json
    assert (why["id"], [each["id"] for each in why["memories"]]) == (answer["exchange"], [told["exchange"]])
    assert mnemos("memory", "why", told["exchange"], "--json").json["memories"] == []


def test_search_ranks_what_a_turn_would_recall(mnemos: Command) -> None:
    mnemos.remember("The boat leaves at noon.", FACT, "Coal is kept in the cellar.")
    for router in ("full", "latent", "lexical"):
        results = mnemos("memory", "search", QUESTION, "--router", router, "--json").json["results"]
        assert results[0]["text"] == FACT, router
        assert [each["rank"] for each in results] == list(range(1, len(results) + 1))
        assert [each["score"] for each in results] == sorted(
            (each["score"] for each in results), reverse=True
        )


def test_forgetting_takes_the_replies_made_with_it(mnemos: Command) -> None:
    told = mnemos("remember", FACT, "--json").json["id"]
    asked = mnemos("ask", QUESTION, *SHORT, "--json").json
    assert [memory["id"] for memory in asked["memories"]] == [told]
    plan = mnemos("memory", "forget", "--id", told, "--dry-run", "--json").json
    assert [memory["id"] for memory in plan["dependants"]] == [asked["exchange"]]
    ran = mnemos("memory", "forget", "--id", told, "--yes", "--json").json
    assert (ran["forgotten"], ran["dependants"]) == ([told], [asked["exchange"]])
    (left,) = mnemos("memory", "list", "--json").json["memories"]
    assert (left["text"], left["reply"]) == (QUESTION, None)
    assert left["id"] == ran["receipt"]["rewritten"][asked["exchange"]]


def test_a_piped_chat_is_one_turn_a_line(mnemos: Command) -> None:
    lines = [
        FACT,
        "",
        "/memories",
        "/remember I keep bees.",
        QUESTION,
        "/why",
        "/session",
        "/quit",
        "never said",
    ]
    ran = mnemos.process("chat", *SHORT, stdin="\n".join(lines))
    assert ran.code == 0
    assert "\x1b" not in ran.out
    assert [text for text, _ in exchanges(mnemos)] == [FACT, QUESTION]
    assert any(FACT in line and line.count("\t") == 8 for line in ran.out.splitlines())
    assert "remembered as" in ran.err and "> " not in ran.out


def test_a_piped_chat_in_json(mnemos: Command) -> None:
    ran = mnemos("chat", *SHORT, "--json", stdin=f"{FACT}\n/session title Family\n{QUESTION}\n")
    first, second = (json.loads(line) for line in ran.out.splitlines())
    assert first["session"] == second["session"]
    again = mnemos(
        "chat", *SHORT, "--json", "--session", first["session"][:8], stdin="And now?\n/session list\n"
    )
    assert json.loads(again.out.splitlines()[0])["session"] == first["session"]
    assert again.out.splitlines()[1].split("\t")[2:] == ["3", "Family"]


def test_a_turn_that_fails_ends_no_conversation(mnemos: Command) -> None:
    stdin = b"caf\xe9\n/frobnicate\n/forget bees\n" + b"word " * 2_000_000 + b"\n" + FACT.encode()
    ran = mnemos("chat", *SHORT, stdin=stdin)
    assert ran.code != 0
    assert ran.err.count("error: ") == 4
    assert [text for text, _ in exchanges(mnemos)] == [FACT]


def test_forgetting_inside_a_piped_chat(mnemos: Command) -> None:
    ran = mnemos(
        "chat", *SHORT, stdin="/remember The code is 4417.\n/forget --yes 4417\n/forget --yes 4417\n"
    )
    assert "receipt" in ran.err and "nothing matches" in ran.err
    assert mnemos("memory", "list", "--json").json["memories"] == []


def test_a_plain_chat_on_a_terminal(mnemos: Command, open_terminal: OpenTerminal) -> None:
    terminal = open_terminal(mnemos, "chat", "--plain", *SHORT)
    terminal.wait_for("> ")
    terminal.type(f"{FACT}\n")
    terminal.wait_for("\n> ")
    terminal.type("/help\n")
    terminal.wait_for("/session [new|list|ID|title TEXT]")
    terminal.wait_for("\n> ")
    terminal.type("\x1b[A\x1b[A\n")  # two lines up in the history: the first message again
    terminal.wait_for(FACT)
    terminal.wait_for("\n> ")
    terminal.type("/forget nurse\n")
    terminal.wait_for("[y/N]")
    terminal.type("n\n")
    terminal.wait_for("nothing was forgotten")
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.end() == 0
    assert [text for text, _ in exchanges(mnemos)] == [FACT, FACT]
    written = [path.name for path in (mnemos.bank.parent / "home").rglob("*") if path.is_file()]
    assert not any("history" in name for name in written)


def test_ctrl_c_keeps_the_message_and_marks_the_reply(mnemos: Command, open_terminal: OpenTerminal) -> None:
    terminal = open_terminal(mnemos, "chat", "--plain")
    terminal.wait_for("> ")
    terminal.type("Tell me a very long story about the sea and all of its ships and harbours.\n")
    terminal.wait_for("loading the model ...")
    seen = len(terminal.seen) + 60
    terminal.wait_until(lambda: len(terminal.seen) > seen)
    terminal.interrupt()
    terminal.wait_for("interrupted")
    terminal.wait_for("> ")
    terminal.type("/quit\n")
    assert terminal.end() == 0
    ((text, status),) = exchanges(mnemos)
    assert text.startswith("Tell me a very long story") and status == "interrupted"
    kept = mnemos("memory", "list", "--json").json["memories"][0]["reply"]
    assert kept and kept.split()[0] in terminal.seen
    assert mnemos("bank", "verify", "--deep", "--json").json["ok"]


def test_ctrl_c_ends_ask_with_130(mnemos: Command, open_terminal: OpenTerminal) -> None:
    terminal = open_terminal(mnemos, "ask", "Tell me a very long story about the sea and all of its ships.")
    terminal.wait_until(lambda: len(terminal.seen) > 300)
    terminal.interrupt()
    assert terminal.end() == 130
    assert [status for _, status in exchanges(mnemos)] == ["interrupted"]


def test_the_plain_chat_has_the_commands_of_the_app(
    mnemos: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mnemos.tui import chat_commands
    from mnemos.tui.app import slash

    assert set(slash.HELP) <= set(chat_commands.COMMANDS)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.md").write_text("The pear tree is old.\n")
    lines = (
        FACT,
        "/regenerate",
        "/branch",
        "/incognito",
        "What do you know of Clara?",
        "/incognito",
        "/ingest notes.md",
        "/export talk.json",
        "/export talk.json",
        "/namespace",
        "/namespace work",
        "/session list",
    )
    ran = mnemos("chat", *SHORT, stdin="\n".join(lines))
    assert ran.code == 2, "a file is not overwritten without a yes"
    assert "the earlier reply is kept" in ran.err and "nothing of this is stored" in ran.err
    assert "1 memories added" in ran.err and "namespace work" in ran.err
    sessions = mnemos("session", "list", "--json").json["sessions"]
    assert len(sessions) == 3 and sum(each["parent_id"] is not None for each in sessions) == 2
    assert [text for text, _ in exchanges(mnemos)] == [FACT, FACT], "the incognito turn is nowhere"
    document = json.loads((tmp_path / "talk.json").read_text())
    assert [each["text"] for each in document["exchanges"]] == [FACT]

    (first, *_) = mnemos("memory", "list", "--where", "kind:exchange", "--json").json["memories"]
    (pear,) = mnemos("memory", "list", "--match", "pear", "--json").json["memories"]
    again = mnemos("memory", "whatif", first["id"], "--without", pear["id"][:8], *SHORT, "--json").json
    assert again["id"] == first["id"] and again["without"] == [pear["id"]]
    assert pear["id"] not in [each["id"] for each in again["memories"]]
    assert mnemos("memory", "whatif", pear["id"], "--without", pear["id"]).code == 2


def test_an_incognito_question_recalls_and_leaves_nothing(mnemos: Command) -> None:
    mnemos("remember", FACT)
    before = mnemos("memory", "stats", "--json").json["memories"]
    asked = mnemos("ask", "Where does my sister Clara work?", *SHORT, "--incognito", "--json").json
    assert [each["text"] for each in asked["memories"]] == [FACT]
    assert asked["exchange"] is None and asked["stored"] == []
    assert mnemos("memory", "stats", "--json").json["memories"] == before
    assert mnemos("session", "list", "--json").json["sessions"] == []
