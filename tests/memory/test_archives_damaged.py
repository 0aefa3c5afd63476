"""Archives that are damaged, hostile or no archives."""

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.memory.archive_content import archive_from, archive_of, fill, lines_of, put_trace

from mnemos.errors import ArchiveError, MnemosError, UsageError
from mnemos.memory.bank import MemoryBank
from mnemos.store import archive_cipher


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
