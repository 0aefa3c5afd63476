"""Conversations of other programs become exchanges, once each, whatever else is in their files."""

import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnemos.errors import ArchiveError, MnemosError, NotFoundError, UsageError
from mnemos.memory import importing
from mnemos.memory.bank import MAX_TEXT_BYTES, MemoryBank
from mnemos.memory.importing_json import array_elements

NOON = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[MemoryBank]:
    with MemoryBank.open(tmp_path / "bank") as opened:
        yield opened


def node(
    name: str,
    parent: str | None,
    children: Sequence[str],
    role: str | None,
    *parts: Any,
    kind: str = "text",
    after_s: float = 0.0,
    **more: Any,
) -> dict[str, Any]:
    """One node of a ChatGPT conversation."""
    message = role and {
        "id": name,
        "author": {"role": role, "name": None, "metadata": {}},
        "create_time": NOON.timestamp() + after_s,
        "content": {"content_type": kind, "parts": list(parts)},
        "status": "finished_successfully",
        "recipient": "all",
        "metadata": {},
        **more,
    }
    return {"id": name, "message": message, "parent": parent, "children": list(children)}


def chatgpt(**more: Any) -> dict[str, Any]:
    """A conversation with a system message, a tool, a picture, and an answer that was done anew."""
    nodes = [
        node("root", None, ["sys"], None),
        node("sys", "root", ["q1"], "system", ""),
        node("q1", "sys", ["old", "code"], "user", "My boat is called Vela.", after_s=1.5),
        node("old", "q1", [], "assistant", "An answer that was thrown away.", after_s=2),
        node("code", "q1", ["out"], "assistant", "search(boats)", kind="code", recipient="browser"),
        node("out", "code", ["a1"], "tool", "Result of the tool.", after_s=3),
        node("a1", "out", ["q2"], "assistant", "A fine name!", after_s=4),
        node(
            "q2",
            "a1",
            ["a2"],
            "user",
            {"content_type": "image_asset_pointer"},
            "What is on the picture?",
            kind="multimodal_text",
            after_s=60,
        ),
        node("a2", "q2", [], "assistant", "A green boat.", "And a gull.", after_s=61),
    ]
    conversation = {
        "title": "Boats",
        "create_time": NOON.timestamp(),
        "update_time": NOON.timestamp() + 100,
        "mapping": {each["id"]: each for each in nodes},
        "current_node": "a2",
        "conversation_id": "6f2c-boats",
    }
    return conversation | more


def claude(**more: Any) -> dict[str, Any]:
    messages = [
        {
            "uuid": "m1",
            "sender": "human",
            "text": "My aunt lives in Porto.",
            "created_at": "2025-03-01T12:00:01Z",
            "content": [{"type": "text", "text": "My aunt lives in Porto."}],
        },
        {
            "uuid": "m2",
            "sender": "assistant",
            "text": "",
            "created_at": "2025-03-01T12:00:05.250000Z",
            "content": [
                {"type": "thinking", "thinking": "Hm."},
                {"type": "text", "text": "How nice."},
                {"type": "tool_use", "name": "map", "input": {}},
            ],
        },
        {"uuid": "m3", "sender": "human", "text": "", "created_at": "2025-03-01T12:00:06Z", "content": []},
        {
            "uuid": "m4",
            "sender": "human",
            "text": "And my uncle in Faro.",
            "created_at": "2025-03-01T12:01:00Z",
        },
    ]
    conversation = {
        "uuid": "c-porto",
        "name": "Family",
        "created_at": "2025-03-01T12:00:00.000000Z",
        "updated_at": "2025-03-01T12:02:00Z",
        "account": {"uuid": "a"},
        "chat_messages": messages,
    }
    return conversation | more


def jsonl(*records: Any) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def exchanges(bank: MemoryBank, namespace: str = "default") -> list[tuple[str, str | None]]:
    return [(memory.text, memory.reply) for memory in bank.list(namespace, newest_first=False)]


def read(bank: MemoryBank, data: Any, **more: Any) -> Any:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return bank.import_(io.BytesIO(raw), **more)


def test_chatgpt_conversations_become_exchanges(bank: MemoryBank) -> None:
    report = read(bank, [chatgpt()])
    assert (report.format, report.added, report.sessions) == ("chatgpt", 2, 1)
    assert report.skipped_messages == 3 and report.problems == ()
    assert exchanges(bank) == [
        ("My boat is called Vela.", "A fine name!"),
        ("What is on the picture?", "A green boat.\n\nAnd a gull."),
    ]
    memory = bank.list(newest_first=False)[0]
    assert (memory.kind, memory.speaker, memory.status) == ("exchange", "User", "complete")
    assert memory.created_at == datetime(2025, 3, 1, 12, 0, 1, 500000, tzinfo=UTC)
    (session,) = bank.sessions()
    assert (session.title, session.created_at, session.turns) == ("Boats", NOON, 2)
    assert memory.session_id == session.id and bank.why(memory.id) == []


def test_without_a_current_node_the_last_branch_counts(bank: MemoryBank) -> None:
    read(bank, [chatgpt(current_node=None)])
    assert ("My boat is called Vela.", "A fine name!") in exchanges(bank)
    read(bank, [chatgpt(current_node="old", conversation_id="other")], into="other")
    assert exchanges(bank, "other") == [("My boat is called Vela.", "An answer that was thrown away.")]


def test_claude_conversations_become_exchanges(bank: MemoryBank) -> None:
    report = read(bank, [claude()])
    assert (report.format, report.added, report.skipped_messages) == ("claude", 2, 1)
    assert exchanges(bank) == [("My aunt lives in Porto.", "How nice."), ("And my uncle in Faro.", None)]
    assert [session.title for session in bank.sessions()] == ["Family"]
    assert bank.list(newest_first=False)[0].created_at == datetime(2025, 3, 1, 12, 0, 1, tzinfo=UTC)


def test_only_the_branch_of_claudes_last_message_counts(bank: MemoryBank) -> None:
    messages = [
        {"uuid": "1", "sender": "human", "text": "Q", "parent_message_uuid": "0000"},
        {"uuid": "2", "sender": "assistant", "text": "thrown away", "parent_message_uuid": "1"},
        {"uuid": "3", "sender": "assistant", "text": "A", "parent_message_uuid": "1"},
    ]
    read(bank, [claude(chat_messages=messages)])
    assert exchanges(bank) == [("Q", "A")]


def test_plain_logs_of_both_forms(bank: MemoryBank) -> None:
    report = read(
        bank,
        jsonl(
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello.", "created_at": "2025-03-01T12:00:00Z"},
            {"role": "user", "content": "Are you there?"},
            {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
            {"role": "user", "content": "In the evening.", "session": "evening"},
            {"role": "assistant", "content": "Good evening.", "session": "evening"},
            {
                "messages": [
                    {"role": "assistant", "content": "Welcome."},
                    {"role": "user", "content": "Hi."},
                ],
                "title": "Greeting",
            },
        ),
    )
    assert (report.format, report.added, report.sessions, report.skipped_messages) == ("jsonl", 4, 3, 1)
    assert exchanges(bank) == [
        ("Hello.\n\nAre you there?", "Yes."),
        ("In the evening.", "Good evening."),
        ("Welcome.", None),
        ("Hi.", None),
    ]
    assert {session.title for session in bank.sessions()} == {None, "evening", "Greeting"}
    assert next(memory for memory in bank.list() if memory.text == "Welcome.").speaker == "Assistant"


@pytest.mark.parametrize(
    "data",
    [
        [chatgpt()],
        [claude()],
        jsonl(
            {"role": "user", "content": "ok"},
            {"role": "assistant", "content": "1"},
            {"role": "user", "content": "ok"},
            {"role": "assistant", "content": "2"},
        ),
        jsonl({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}),
    ],
    ids=["chatgpt", "claude", "lines", "messages"],
)
def test_importing_twice_adds_nothing_and_neither_does_a_move(
    bank: MemoryBank, tmp_path: Path, data: Any
) -> None:
    first = read(bank, data)
    again = read(bank, data)
    assert first.added and (again.added, again.known) == (0, first.added)
    assert len(bank.list()) == first.added
    bank.export(tmp_path / "archive")
    is_dated = not isinstance(data, bytes)  # an archive gives what has no time the time of its import
    with MemoryBank.open(tmp_path / "second") as other:
        other.import_(tmp_path / "archive")
        assert read(other, data).added == (0 if is_dated else first.added)


def test_a_log_that_grew_adds_what_is_new(bank: MemoryBank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "_MAX_FLAT", 4)
    lines = [{"role": role, "content": f"{role} {n}"} for n in range(7) for role in ("user", "assistant")]
    assert read(bank, jsonl(*lines[:10])).added == 5
    report = read(bank, jsonl(*lines))
    assert (report.added, report.known, report.sessions) == (2, 5, 0)
    assert exchanges(bank) == [(f"user {n}", f"assistant {n}") for n in range(7)]


def test_bad_records_are_reported_by_number(bank: MemoryBank) -> None:
    circle = chatgpt(conversation_id="circle")
    circle["mapping"]["root"]["parent"] = "a2"
    bad_parts = chatgpt(conversation_id="parts")
    bad_parts["mapping"]["q1"]["message"]["content"]["parts"] = "words"
    report = read(
        bank,
        [
            chatgpt(),
            {"title": "none"},
            circle,
            chatgpt(conversation_id=5, id=None),
            bad_parts,
            chatgpt(conversation_id="last", title=None, create_time="x", update_time=1e300),
        ],
    )
    assert report.added == 4 and [problem.record for problem in report.problems] == [2, 3, 4, 5]
    assert all("Vela" not in problem.reason for problem in report.problems)
    report = read(
        bank, b'{"role": "user", "content": "x"}\n{"role": \n[1]\n{"role": "user"}\n{"a": 1}\n', into="y"
    )
    assert [problem.record for problem in report.problems] == [2, 3, 5] and report.added == 1


def test_what_is_no_conversation_is_an_error(bank: MemoryBank) -> None:
    for data in (
        b"",
        b"   ",
        b"[{]",
        b'[{"mapping"',
        b"[{}] x",
        b"[1]",
        b'{"a": 1}\n',
        b"words\n",
        b"[{} {}]",
    ):
        with pytest.raises(ArchiveError):
            read(bank, data)
    with pytest.raises(ArchiveError, match="JSON list"):
        read(bank, b'{"role": "user", "content": "x"}\n', format="chatgpt")
    with pytest.raises(ArchiveError, match="JSONL"):
        read(bank, [chatgpt()], format="jsonl")
    with pytest.raises(NotFoundError):
        bank.import_("/no/such/file")
    assert bank.namespaces() == []


def test_a_cut_list_keeps_what_came_before(bank: MemoryBank) -> None:
    raw = json.dumps([chatgpt(conversation_id=f"c{n}") for n in range(200)]).encode()
    with pytest.raises(ArchiveError, match=r"cut off.* 250 memories before that are imported"):
        read(bank, raw[:-10_000])
    assert len(bank.list()) == 250
    assert read(bank, raw).added == 150


def test_zips_are_read_in_place(bank: MemoryBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export = tmp_path / "export.zip"
    with zipfile.ZipFile(export, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("conversations.json", json.dumps([chatgpt()]))
        archive.writestr("conversations-001.json", json.dumps([chatgpt(conversation_id="two")]))
        archive.writestr("../conversations.json", json.dumps([chatgpt(conversation_id="up")]))
        archive.writestr("/conversations.json", json.dumps([chatgpt(conversation_id="root")]))
        archive.writestr("chat.html", "<html>")
    report = bank.import_(export)
    assert (report.format, report.added) == ("chatgpt", 4)
    assert {memory.source for memory in bank.list()} == {str(export)}
    plan = bank.plan_forget(source=str(export))
    bank.forget(plan)
    assert bank.list() == [] and bank.sessions() == []
    damaged = bytearray(export.read_bytes())
    damaged[120:200] = bytes(80)
    (tmp_path / "damaged.zip").write_bytes(damaged)
    with pytest.raises(ArchiveError):
        bank.import_(tmp_path / "damaged.zip")
    (tmp_path / "cut.zip").write_bytes(export.read_bytes()[:-30])
    with pytest.raises(ArchiveError, match="zip is damaged"):
        bank.import_(tmp_path / "cut.zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("chat.html", "<html>")
    with pytest.raises(NotFoundError, match=r"no conversations\.json"):
        bank.import_(tmp_path / "other.zip")
    monkeypatch.setattr(importing, "_MAX_ZIP_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("conversations.json", b" " * 2000)
    with pytest.raises(ArchiveError, match="swell"):
        bank.import_(tmp_path / "bomb.zip")


def test_an_archive_is_not_taken_for_a_conversation(bank: MemoryBank, tmp_path: Path) -> None:
    bank.remember("Something.")
    bank.export(tmp_path / "archive")
    with pytest.raises(UsageError, match="archive of Mnemos"):
        bank.import_(tmp_path / "archive", format="chatgpt")


def test_long_and_broken_words_are_made_fit(bank: MemoryBank) -> None:
    long = "ä" * MAX_TEXT_BYTES
    read(
        bank,
        jsonl({"messages": [{"role": "user", "content": long}, {"role": "assistant", "content": "\ud83d!"}]}),
    )
    (memory,) = bank.list()
    assert memory.text.endswith(" […]") and len(memory.text.encode()) <= MAX_TEXT_BYTES
    assert memory.reply == "?!"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.just("user"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "messages", "mapping", "message", "parent", "author", "parts", "a"]
            ),
            inner,
            max_size=4,
        )
    ),
)


@given(
    records=st.lists(st.dictionaries(st.text(max_size=4), JSON, max_size=3), max_size=5),
    pad=st.sampled_from([b"", b" ", b"\n\t"]),
)
@settings(max_examples=40, deadline=None)
def test_the_elements_of_a_list_are_those_that_json_finds(records: list[Any], pad: bytes) -> None:
    raw = pad + b"[" + pad + (pad + b"," + pad).join(json.dumps(one).encode() for one in records) + b"]" + pad
    found = [json.loads(data) for data in array_elements(io.BytesIO(raw))]
    assert json.dumps(found) == json.dumps(records)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryBank]:
    with MemoryBank.open(tmp_path_factory.mktemp("scratch") / "bank", encryption=False) as opened:
        yield opened


@given(data=st.data(), value=JSON)
@settings(max_examples=40, deadline=None)
def test_any_value_anywhere_is_taken_or_reported(
    scratch: MemoryBank, data: st.DataObject, value: Any
) -> None:
    record = json.loads(json.dumps(data.draw(st.sampled_from([chatgpt(), claude()]))))
    at: Any = record
    while True:
        keys = sorted(at) if isinstance(at, dict) else list(range(len(at)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(at[key], (dict, list)) or not at[key] or data.draw(st.booleans()):
            at[key] = value
            break
        at = at[key]
    report = read(scratch, [record, chatgpt()], into="fuzz")
    assert report.added + report.known >= 2 or len(report.problems) == 1
    if scratch.store.count("fuzz") > 200:
        scratch.forget(scratch.plan_forget(namespace="fuzz", everything=True))


@given(at=st.integers(0, 10**6), byte=st.integers(0, 255))
@settings(max_examples=40, deadline=None)
def test_mutated_files_are_imported_or_refused(scratch: MemoryBank, at: int, byte: int) -> None:
    raw = bytearray(json.dumps([chatgpt(), claude()]).encode())
    raw[at % len(raw)] = byte
    try:
        read(scratch, bytes(raw), into="mutated")
    except MnemosError as error:
        assert "Vela" not in str(error)
