"""Archives of memories: out of one bank, into another, once each, and never back what was forgotten."""

import hashlib
import io
import json
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mnemos.errors import ArchiveError, MnemosError, NotFoundError, StalePlanError, UsageError
from mnemos.memory.archiving import MODEL_NAME_SETTING, MODEL_SETTING, Chosen
from mnemos.memory.bank import MemoryBank
from mnemos.memory.ingest import ingest
from mnemos.memory.records import Memory
from mnemos.store import archive_cipher, archive_export
from mnemos.store.records import MemoryDraft, TraceDraft, UseRecord

PAST = datetime(2024, 2, 29, 23, 59, 59, 123456, tzinfo=UTC)


def kv_payload(tokens: int, size: int = 5000) -> bytes:
    return struct.pack("<4sBHHHHI", b"MKV1", 4, 2, 1, 8, 1, tokens) + os.urandom(size)


def route_payload(tokens: int) -> bytes:
    return struct.pack("<4sHHHHI", b"MRT1", 2, 8, 16, 1, tokens) + os.urandom(200)


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


def fill(bank: MemoryBank) -> dict[str, Memory]:
    """A fact, a reply made with it in a session, a pinned note with every field, and another namespace's."""
    fact = bank.remember("My sister Clara works as a nurse.", tags=["family", "work"])
    session = bank.create_session(title="evening talk")
    asked = bank.begin_exchange("What does she do?", namespace="default", session_id=session.id)
    bank.store.complete(
        "default",
        asked.id,
        "Clara is a nurse.",
        uses=[UseRecord(fact.id, 1, 0.75, {"lexical": 2.5}, 0.4, True)],
    )
    draft = MemoryDraft(
        'Ünïcode \u2028 "quotes" \\ and\nlines \x00 \U0001f6b2',
        kind="tool",
        speaker="Tool",
        title="A title",
        source="/some/where.txt",
        tags=["späte", "x"],
        created_at=PAST,
        expires_at=datetime(2999, 1, 1, tzinfo=UTC),
    )
    note = bank.remember_many([draft])[0]
    bank.pin(note.id)
    theirs = bank.remember("The boat is green.", namespace="acme/bob")
    return {"fact": fact, "asked": asked, "note": note, "theirs": theirs}


def content(bank: MemoryBank) -> dict[str, Any]:
    """All that people see of a bank, by namespace."""
    return {
        name: {
            "memories": [
                memory.model_dump(exclude={"fidelity", "trace_bytes", "tokens"})
                for memory in bank.list(name, include_hidden=True, newest_first=False)
            ],
            "uses": {
                memory.id: [
                    (use.memory.id, use.rank, use.score, dict(use.signals), use.attention, use.cited)
                    for use in bank.why(memory.id, namespace=name)
                ]
                for memory in bank.list(name)
            },
            "sessions": bank.sessions(name),
            "found": bank.store.lexical(name, "nurse sister boat späte", 10),
        }
        for name in bank.namespaces()
    }


def archive_of(bank: MemoryBank, **more: Any) -> bytes:
    out = io.BytesIO()
    bank.export(out, **more)
    return out.getvalue()


def lines_of(archive: bytes) -> list[dict[str, Any]]:
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(archive)) as reader:
        return [json.loads(line) for line in reader.read().splitlines()]


def archive_from(lines: list[dict[str, Any]]) -> bytes:
    """An archive of these lines, with true digests."""
    digest, raw = hashlib.sha256(), b""
    for line in lines:
        if "sha256" in line and line["type"] in ("check", "end"):
            line = line | {"sha256": digest.hexdigest()}
        data = json.dumps(line).encode() + b"\n"
        digest.update(data)
        raw += data
    return zstandard.compress(raw)


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


def put_trace(bank: MemoryBank, memory: Memory, fingerprint: str = "f1", tokens: int = 7) -> TraceDraft:
    draft = TraceDraft(memory.id, fingerprint, tokens, kv_payload(tokens), route_payload(tokens))
    bank.store.put_traces(memory.namespace, [draft])
    return draft


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


# -- bad archives


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An archive of several groups."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNEMOS_KEY_DIR", str(tmp_path_factory.mktemp("keys")))
        patch.setattr("mnemos.store.archive_lines.GROUP_TEXT_BYTES", 600)
        with MemoryBank.open(tmp_path_factory.mktemp("sample") / "bank", encryption=False) as bank:
            fill(bank)
            put_trace(bank, bank.remember("One more."))
            for number in range(6):
                bank.remember(f"Memory {number}: {hashlib.sha256(b'%d' % number).hexdigest()}")
            return archive_of(bank, traces=True)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryBank]:
    """A bank that the fuzz tests share."""
    with MemoryBank.open(tmp_path_factory.mktemp("scratch") / "bank", encryption=False) as bank:
        yield bank


def check_import(bank: MemoryBank, archive: bytes, true: bytes, passphrase: str | None = None) -> None:
    """An error of ours or a true import, and in the bank nothing but what the true archive holds."""
    texts = {line["text"]: line for line in lines_of(true) if line["type"] == "memory"}
    added = 0
    try:
        added = bank.import_(io.BytesIO(archive), passphrase=passphrase, into="fuzz").added
    except MnemosError as error:
        assert not any(text in str(error) for text in texts)
    found = bank.list("fuzz", include_hidden=True)
    assert {memory.text for memory in found} <= texts.keys()
    for memory in found:
        line = texts[memory.text]
        assert (memory.reply, list(memory.tags), memory.title) == (line["reply"], line["tags"], line["title"])
    assert added <= len(found)
    if found:
        bank.forget(bank.plan_forget(namespace="fuzz", everything=True))


FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(data=st.data())
@FUZZ
def test_mutated_archives_bring_in_nothing_false(
    sample: bytes, scratch: MemoryBank, data: st.DataObject
) -> None:
    archive = bytearray(sample)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(archive) - 1))
        archive[at] = data.draw(st.integers(0, 255))
    check_import(scratch, bytes(archive), sample)


@given(data=st.data())
@FUZZ
def test_mutated_lines_bring_in_nothing_false(
    sample: bytes, scratch: MemoryBank, data: st.DataObject
) -> None:
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(sample)) as reader:
        lines = reader.read().splitlines(keepends=True)
    at = data.draw(st.integers(0, len(lines) - 1))
    act = data.draw(st.sampled_from(["drop", "twice", "swap", "flip", "junk"]))
    if act == "drop":
        del lines[at]
    elif act == "twice":
        lines.insert(at, lines[at])
    elif act == "swap":
        to = data.draw(st.integers(0, len(lines) - 1))
        lines[at], lines[to] = lines[to], lines[at]
    elif act == "flip":
        line = bytearray(lines[at])
        line[data.draw(st.integers(0, len(line) - 1))] = data.draw(st.integers(0, 255))
        lines[at] = bytes(line)
    else:
        lines[at] = data.draw(st.binary(max_size=60)) + b"\n"
    check_import(scratch, zstandard.compress(b"".join(lines)), sample)


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.integers(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    ),
    data=st.data(),
)
@settings(FUZZ, max_examples=25)
def test_any_value_in_any_field_is_taken_or_refused(
    sample: bytes, scratch: MemoryBank, value: Any, data: st.DataObject
) -> None:
    """With true digests, as whoever makes an archive by hand would give them."""
    lines = lines_of(sample)
    line = data.draw(st.sampled_from(lines))
    line[data.draw(st.sampled_from(sorted(line)))] = value
    with suppress(MnemosError):
        scratch.import_(io.BytesIO(archive_from(lines)))
    for name in scratch.namespaces():
        scratch.forget(scratch.plan_forget(namespace=name, everything=True))


def test_every_cut_is_an_error_that_counts_and_goes_on(sample: bytes, tmp_path: Path) -> None:
    with MemoryBank.open(tmp_path / "bank", encryption=False) as bank:
        sums = []
        for cut in sorted({*range(0, len(sample) - 8, len(sample) // 12), 1, 4, 5}):
            with pytest.raises(ArchiveError, match=r"cut off|no archive|first bytes|empty|damaged"):
                bank.import_(io.BytesIO(sample[:cut]), format="archive")
            sums.append(sum(len(bank.list(name)) for name in bank.namespaces()))
        assert sums == sorted(sums) and sums[-1] > 0
        bank.import_(io.BytesIO(sample))
        texts = [line["text"] for line in lines_of(sample) if line["type"] == "memory"]
        assert sum(len(bank.list(name)) for name in bank.namespaces()) == len(texts)
        assert bank.verify(deep=True).ok


def test_the_error_of_a_cut_archive_says_how_many_are_in(sample: bytes, bank: MemoryBank) -> None:
    lines = lines_of(sample)
    second = [at for at, line in enumerate(lines) if line["type"] == "check"][1]
    with pytest.raises(ArchiveError, match=r"cut off.* (\d+) memories before that are imported") as caught:
        bank.import_(io.BytesIO(archive_from(lines[: second + 1])))
    added = sum(len(bank.list(name)) for name in bank.namespaces())
    assert f" {added} memories" in str(caught.value)


def rewritten(sample: bytes, change: Callable[[list[dict[str, Any]]], object]) -> bytes:
    lines = lines_of(sample)
    change(lines)
    return archive_from(lines)


def test_a_newer_archive_is_refused(sample: bytes, bank: MemoryBank) -> None:
    newer = rewritten(sample, lambda lines: lines[0].update(version=2, invented={"x": 1}))
    with pytest.raises(ArchiveError, match=r"version 2.*newer Mnemos"):
        bank.import_(io.BytesIO(newer))
    assert bank.namespaces() == []


@pytest.mark.parametrize("name", ["../up", "a/../b", "/etc", "a//b", "", ".", "a\x00b", "x" * 200, "a\\b"])
def test_namespaces_with_tricks_in_their_names_are_refused(
    sample: bytes, bank: MemoryBank, name: str
) -> None:
    bad = rewritten(sample, lambda lines: lines[1].update(name=name))
    with pytest.raises(ArchiveError, match=r"namespace|damaged"):
        bank.import_(io.BytesIO(bad))
    assert bank.namespaces() == []


def test_texts_and_lines_over_the_limit_are_refused(sample: bytes, bank: MemoryBank) -> None:
    def swell(lines: list[dict[str, Any]]) -> None:
        next(line for line in lines if line["type"] == "memory")["text"] = "long " * (1 << 18)

    with pytest.raises(ArchiveError, match="takes 1,048,576"):
        bank.import_(io.BytesIO(rewritten(sample, swell)))
    endless = zstandard.compress(b'{"type":"header","x":"' + b"a" * (17 << 20))
    with pytest.raises(ArchiveError, match="longer than any"):
        bank.import_(io.BytesIO(endless))
    assert bank.namespaces() == []


def test_a_bomb_is_not_read_on(sample: bytes, bank: MemoryBank) -> None:
    lines = lines_of(sample)
    session = next(line for line in lines if line["type"] == "session")
    raw = json.dumps(lines[0]).encode() + b"\n" + json.dumps(lines[1]).encode() + b"\n"
    named = (json.dumps(session | {"id": f"{n:06}", "title": "t" * 60_000}).encode() for n in range(1200))
    many = raw + b"\n".join(named)
    with pytest.raises(ArchiveError, match=r"larger than any|swells"):
        bank.import_(io.BytesIO(zstandard.compress(many)))


@pytest.mark.parametrize("junk", [b"x" * 100, b"\x28\xb5\x2f\xfd", zstandard.compress(b"words\n")])
def test_what_is_no_archive_is_called_so(bank: MemoryBank, junk: bytes) -> None:
    with pytest.raises(ArchiveError, match="no archive"):
        bank.import_(io.BytesIO(junk), format="archive")


def test_something_behind_the_end_is_refused(sample: bytes, bank: MemoryBank) -> None:
    with pytest.raises(ArchiveError):
        bank.import_(io.BytesIO(sample + b"more"))
    with pytest.raises(ArchiveError, match=r"follows|out of order|damaged"):
        bank.import_(io.BytesIO(sample + zstandard.compress(b"{}\n")))


def test_a_wrong_or_missing_passphrase_changes_nothing(bank: MemoryBank, other: MemoryBank) -> None:
    bank.remember("Something.")
    archive = archive_of(bank, passphrase="right")
    with pytest.raises(ArchiveError, match="passphrase"):
        other.import_(io.BytesIO(archive), passphrase="wrong")
    with pytest.raises(UsageError, match="encrypted"):
        other.import_(io.BytesIO(archive))
    assert other.namespaces() == []
    assert other.import_(io.BytesIO(archive), passphrase=lambda: "right").added == 1


def test_an_export_is_in_the_audit_log(bank: MemoryBank) -> None:
    bank.remember("Something.")
    archive_of(bank)
    assert [line["action"] for line in bank.store.audit()] == ["export"]
