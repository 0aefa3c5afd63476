"""Archives of memories: out of one bank, into another, once each, and never back what was forgotten."""

import io
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import zstandard
from tests.memory.archive_content import (
    archive_from,
    archive_of,
    content,
    fill,
    kv_payload,
    lines_of,
    put_trace,
    route_payload,
)

from mnemos.errors import ArchiveError, NotFoundError, StalePlanError, UsageError
from mnemos.memory.archiving import MODEL_NAME_SETTING, MODEL_SETTING, Chosen
from mnemos.memory.bank import MemoryBank
from mnemos.memory.ingest import ingest
from mnemos.store import archive_cipher, archive_export
from mnemos.store.records import TraceDraft, UseRecord


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[MemoryBank]:
    with MemoryBank.open(tmp_path / "bank") as opened:
        yield opened


@pytest.fixture
def other(tmp_path: Path) -> Iterator[MemoryBank]:
    with MemoryBank.open(tmp_path / "other") as opened:
        yield opened


@pytest.fixture(autouse=True)
def quick_scrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_cipher, "_LOG_N", 10)


@pytest.mark.parametrize("passphrase", [None, "correct horse"])
def test_a_bank_comes_back_whole_from_its_archive(
    bank: MemoryBank, other: MemoryBank, tmp_path: Path, passphrase: str | None
) -> None:
    fill(bank)
    target = tmp_path / "all.mnemos"
    report = bank.export(target, passphrase=passphrase)
    assert (report.namespaces, report.memories, report.sessions) == (2, 4, 1)
    assert report.bytes == target.stat().st_size and report.encrypted == (passphrase is not None)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert (b"nurse" in zstandard.decompress(target.read_bytes(), 1 << 20)) if not passphrase else True
    assert passphrase is None or b"nurse" not in target.read_bytes()
    done = other.import_(target, passphrase=passphrase)
    assert (done.format, done.added, done.known, done.sessions) == ("archive", 4, 0, 1)
    assert content(other) == content(bank)
    assert other.verify(deep=True).ok


def test_importing_twice_adds_nothing(bank: MemoryBank, other: MemoryBank) -> None:
    fill(bank)
    archive = archive_of(bank)
    other.import_(io.BytesIO(archive))
    before = content(other)
    again = other.import_(io.BytesIO(archive))
    assert (again.added, again.known, again.sessions) == (0, 4, 0)
    assert content(other) == before
    assert bank.import_(io.BytesIO(archive)).added == 0  # nor does it where it comes from


def test_banks_are_merged(bank: MemoryBank, other: MemoryBank) -> None:
    fill(bank)
    own = other.remember("Mine.")
    other.import_(io.BytesIO(archive_of(bank)))
    assert {memory.id for memory in other.list()} == {own.id} | {memory.id for memory in bank.list()}


def test_into_puts_all_of_it_into_one_namespace(bank: MemoryBank) -> None:
    made = fill(bank)
    archive = archive_of(bank)
    assert bank.import_(io.BytesIO(archive), into="copy").added == 4
    assert bank.import_(io.BytesIO(archive), into="copy").known == 4
    copies = {memory.text: memory for memory in bank.list("copy", include_hidden=True)}
    assert len(copies) == 4 and not {memory.id for memory in copies.values()} & {
        memory.id for memory in made.values()
    }
    asked, fact = copies["What does she do?"], copies["My sister Clara works as a nurse."]
    assert [use.memory.id for use in bank.why(asked.id, namespace="copy")] == [fact.id]
    plan = bank.plan_forget(namespace="copy", ids=[fact.id])
    assert [memory.id for memory in plan.dependants] == [asked.id]


def test_forgotten_hidden_and_expired_memories_stay_out(bank: MemoryBank) -> None:
    gone, hidden = bank.remember("Forgotten canary."), bank.remember("Hidden canary.")
    bank.remember("Kept.")
    bank.remember("Expired canary.", expires_at=datetime.now(UTC) - timedelta(seconds=1))
    bank.hide(hidden.id)
    bank.forget(bank.plan_forget(ids=[gone.id]))
    texts = [line["text"] for line in lines_of(archive_of(bank)) if line["type"] == "memory"]
    assert texts == ["Kept."]
    shown = archive_of(bank, chosen=Chosen(include_hidden=True))
    assert [line["text"] for line in lines_of(shown) if line["type"] == "memory"] == [
        "Hidden canary.",
        "Kept.",
    ]


def test_what_expired_since_the_export_is_left_out(bank: MemoryBank, other: MemoryBank) -> None:
    bank.remember("Soon over.", expires_at=datetime.now(UTC) + timedelta(hours=1))
    lines = lines_of(archive_of(bank))
    for line in lines:
        if line["type"] == "memory":
            line["expires_us"] = 1
    done = other.import_(io.BytesIO(archive_from(lines)))
    assert (done.added, done.expired) == (0, 1) and other.namespaces() == []


def test_filters_choose_and_nothing_chosen_is_nothing_written(bank: MemoryBank, tmp_path: Path) -> None:
    fill(bank)
    chosen = lines_of(archive_of(bank, chosen=Chosen(tags=["family"])))
    assert [line["text"] for line in chosen if line["type"] == "memory"] == [
        "My sister Clara works as a nurse."
    ]
    assert chosen[0]["filtered"] is True
    assert [
        line["name"] for line in lines_of(archive_of(bank, namespaces=["acme/bob"])) if "name" in line
    ] == ["acme/bob"]
    target = tmp_path / "none"
    with pytest.raises(NotFoundError, match="nothing was written"):
        bank.export(target, chosen=Chosen(matching="no such words"))
    with pytest.raises(NotFoundError, match="no namespace"):
        bank.export(target, namespaces=["nobody"])
    assert [path.name for path in tmp_path.iterdir() if "none" in path.name] == []


def test_an_existing_file_is_kept_unless_told(bank: MemoryBank, tmp_path: Path) -> None:
    bank.remember("Something.")
    target = tmp_path / "file"
    target.write_text("precious")
    with pytest.raises(UsageError, match="exists already"):
        bank.export(target)
    assert target.read_text() == "precious"
    bank.export(target, overwrite=True)
    assert target.read_bytes()[:4] == b"\x28\xb5\x2f\xfd"


def test_a_target_that_can_not_be_written_leaves_nothing(bank: MemoryBank, tmp_path: Path) -> None:
    bank.remember("Something.")
    with pytest.raises(ArchiveError, match="can't be written"):
        bank.export(tmp_path / "no" / "such" / "folder")

    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(ArchiveError, match="can't be written: No space"):
        bank.export(Full())


# -- what was forgotten


def test_what_was_forgotten_here_does_not_come_back(bank: MemoryBank) -> None:
    made = fill(bank)
    archive = archive_of(bank)
    receipt = bank.forget(bank.plan_forget(ids=[made["fact"].id]))
    assert made["asked"].id in receipt.rewritten
    before = content(bank)
    done = bank.import_(io.BytesIO(archive))
    assert (done.added, done.erased_before, done.known) == (0, 2, 2)
    assert content(bank) == before
    back = bank.import_(io.BytesIO(archive), restore_erased=True)
    assert (back.added, back.erased_before) == (2, 0)
    assert bank.import_(io.BytesIO(archive), restore_erased=True).added == 0
    assert bank.import_(io.BytesIO(archive)).known == 4
    restored = next(memory for memory in bank.list(matching="Clara works"))
    assert restored.id != made["fact"].id  # whose receipt stays true
    assert bank.verify(deep=True).ok
    bank.forget(bank.plan_forget(ids=[restored.id]))
    assert bank.import_(io.BytesIO(archive)).erased_before == 2


def test_a_forgotten_namespace_does_not_come_back_by_name(bank: MemoryBank) -> None:
    fill(bank)
    archive = archive_of(bank)
    bank.forget(bank.plan_forget(namespace="acme/bob", everything=True))
    assert bank.import_(io.BytesIO(archive)).erased_before == 1
    assert bank.namespaces() == ["default"]


def test_a_reply_made_with_something_forgotten_comes_without_its_words(
    bank: MemoryBank, other: MemoryBank
) -> None:
    made = fill(bank)
    other.import_(io.BytesIO(archive_of(bank, chosen=Chosen(tags=["family"]))))
    other.forget(other.plan_forget(ids=[made["fact"].id]))
    later = bank.begin_exchange("And then?", namespace="default", session_id=None)
    bank.store.complete("default", later.id, "As I said.", uses=[UseRecord(made["asked"].id, 1, 1.0)])
    archive = archive_of(bank)
    for _ in range(2):  # the second import withholds nothing more and brings nothing back
        other.import_(io.BytesIO(archive))
        assert {memory.reply for memory in other.list()} == {None}
        assert "What does she do?" in {memory.text for memory in other.list()}


def test_a_title_that_repeats_what_was_forgotten_is_dropped(bank: MemoryBank) -> None:
    session = bank.create_session(title="My sister Clara works")
    told = bank.remember("My sister Clara works as a nurse.", session_id=session.id)
    bank.remember("It rains.", session_id=session.id)
    archive = archive_of(bank)
    bank.forget(bank.plan_forget(session_id=session.id))
    assert bank.sessions() == []
    bank.remember("Another.")
    lines = lines_of(archive)
    for line in lines:  # a memory of the session that this bank never held
        if line.get("text") == "It rains.":
            line["id"] = "a" * 26
    done = bank.import_(io.BytesIO(archive_from(lines)))
    assert (done.added, done.erased_before) == (1, 1)
    assert [session.title for session in bank.sessions()] == [None]
    assert told.id not in {memory.id for memory in bank.list()}


def test_an_erase_during_an_export_makes_it_start_anew(
    bank: MemoryBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    doomed = bank.remember("Doomed canary.")
    bank.remember("Kept.")
    real, times = archive_export.Exporter._page, []

    def page(self: Any, *args: Any) -> None:
        real(self, *args)
        if not times:
            times.append(1)
            bank.forget(bank.plan_forget(ids=[doomed.id]))

    monkeypatch.setattr(archive_export.Exporter, "_page", page)
    bank.export(tmp_path / "archive")
    texts = [line.get("text") for line in lines_of((tmp_path / "archive").read_bytes())]
    assert "Kept." in texts and "Doomed canary." not in texts
    doomed = bank.remember("Doomed canary.")
    times.clear()
    out = io.BytesIO()
    with pytest.raises(StalePlanError, match="erased while"):
        bank.export(out)
    with pytest.raises(ArchiveError, match=r"cut off|empty"):
        bank.import_(io.BytesIO(out.getvalue()))
    assert sorted(path.name for path in tmp_path.iterdir() if "archive" in path.name) == ["archive"]


# -- content, traces


def test_documents_are_known_by_content_in_another_bank(
    bank: MemoryBank, other: MemoryBank, tmp_path: Path
) -> None:
    document = tmp_path / "notes.md"
    document.write_text("# Boats\n\nThe boat is green.\n\n# Cars\n\nThe car is red.\n")
    (tmp_path / "plain.txt").write_text("No headings here at all.")
    for file in (document, tmp_path / "plain.txt"):
        ingest(bank, file)
    other.import_(io.BytesIO(archive_of(bank)))
    for file in (document, tmp_path / "plain.txt"):
        assert ingest(other, file).added == 0
    bank.import_(io.BytesIO(archive_of(bank)), into="x")
    ingest(other, document, namespace="y")
    done = other.import_(io.BytesIO(archive_of(bank, namespaces=["default"])), into="y")
    assert done.added == 1 and done.known >= 1


def own(bank: MemoryBank, fingerprint: str) -> None:
    bank.store.set_setting(MODEL_SETTING, fingerprint)
    bank.store.set_setting(MODEL_NAME_SETTING, "a-model")


def test_traces_go_along_to_a_bank_of_the_same_model(bank: MemoryBank, other: MemoryBank) -> None:
    memory = bank.remember("Encoded.")
    own(bank, "f1")
    trace = put_trace(bank, memory)
    assert not any(line["type"] == "trace" for line in lines_of(archive_of(bank)))
    archive = archive_of(bank, traces=True)
    assert other.import_(io.BytesIO(archive)).traces == 1
    assert other.store.get_kv("default", memory.id) == trace.kv
    assert other.store.get_route("default", memory.id) == trace.route
    assert other.get(memory.id).tokens == 7 and other.get(memory.id).fidelity == "vivid"
    assert other.store.get_setting(MODEL_SETTING) == "f1"
    assert other.store.pending_traces(None, "f1") == []


def test_large_traces_go_in_parts(
    bank: MemoryBank, other: MemoryBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mnemos.store.archive_lines.PART_BYTES", 1000)
    memory = bank.remember("Encoded.")
    trace = put_trace(bank, memory)
    archive = archive_of(bank, traces=True)
    assert sum(line["type"] == "part" for line in lines_of(archive)) == 6
    own(other, "f1")
    assert other.import_(io.BytesIO(archive)).traces == 1
    assert other.store.get_kv("default", memory.id) == trace.kv


@pytest.mark.parametrize("damage", ["model", "digest", "tokens", "magic"])
def test_traces_that_do_not_fit_are_made_again(bank: MemoryBank, other: MemoryBank, damage: str) -> None:
    memory = bank.remember("Encoded.")
    own(other, "f2" if damage == "model" else "f1")
    tokens = 7
    kv = kv_payload(tokens) if damage != "magic" else b"x" * 100
    draft = TraceDraft(memory.id, "f1", tokens, kv, route_payload(8 if damage == "tokens" else tokens))
    bank.store.put_traces("default", [draft])
    lines = lines_of(archive_of(bank, traces=True))
    if damage == "digest":
        next(line for line in lines if line["type"] == "trace")["sha256"] = "0" * 64
    done = other.import_(io.BytesIO(archive_from(lines)))
    assert (done.added, done.traces) == (1, 0)
    assert other.get(memory.id).fidelity == "pending"
