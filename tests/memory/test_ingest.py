"""Files go into a bank once, and come out as the chunks they were cut into."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mnemos.errors import InvalidTextError, NotFoundError
from mnemos.memory.bank import MemoryBank
from mnemos.memory.chunk import chunk_file
from mnemos.memory.ingest import ingest, source_of
from mnemos.store.keys import KeyFile

HANDBOOK = Path(__file__).resolve().parents[2] / "agent" / "demo_data" / "handbook.md"


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[MemoryBank]:
    with MemoryBank.open(tmp_path / "bank", keys=KeyFile(tmp_path / "bank.key")) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "notes"
    made.mkdir()
    return made


def test_a_document_is_kept_whole_and_in_order(bank: MemoryBank) -> None:
    chunks = chunk_file(HANDBOOK)
    report = ingest(bank, HANDBOOK, namespace="alice", tags=["book"])
    assert (report.added, report.skipped, report.files, report.problems) == (len(chunks), 0, 1, ())
    kept = bank.list("alice", newest_first=False)
    assert [(memory.title, memory.text) for memory in kept] == [(chunk.title, chunk.text) for chunk in chunks]
    assert {(m.kind, m.source, m.tags) for m in kept} == {("document", str(HANDBOOK), ("book",))}


def test_a_second_time_adds_nothing(bank: MemoryBank, folder: Path) -> None:
    ingest(bank, HANDBOOK)
    count = bank.stats("default").memories
    copy = folder / "copy.md"
    copy.write_bytes(HANDBOOK.read_bytes())
    for path in (HANDBOOK, copy):
        again = ingest(bank, path)
        assert (again.added, again.skipped) == (0, count)
    assert bank.stats("default").memories == count
    assert ingest(bank, HANDBOOK, namespace="other").added == count


def test_an_edit_adds_its_own_chunk_alone(bank: MemoryBank, folder: Path) -> None:
    page = folder / "page.md"
    page.write_text("# B\n\nTwo.\n\n# A\n\nOne.\n\n# B\n\nTwo.\n")
    first = ingest(bank, page)
    assert (first.added, first.skipped) == (2, 1)  # the same words under the same heading count once
    page.write_text("# A\n\nOne.\n\n# B\n\nTwo, changed.\n")
    second = ingest(bank, page)
    assert (second.added, second.skipped) == (1, 1)


def test_what_was_forgotten_may_be_ingested_anew(bank: MemoryBank, folder: Path) -> None:
    page = folder / "page.txt"
    page.write_text("The cellar key is under the mat.")
    ingest(bank, page)
    bank.forget(bank.plan_forget(source=source_of(page)))
    assert bank.list() == []
    assert ingest(bank, page).added == 1


def test_a_directory_lists_what_it_left_out(bank: MemoryBank, folder: Path) -> None:
    (folder / "good.txt").write_text("Words.")
    (folder / "bad.txt").write_bytes(b"\xff\xfe\xff")
    (folder / "picture.png").write_bytes(b"\x89PNG\0")
    (folder / "empty.txt").write_bytes(b"")
    steps: list[tuple[int, int]] = []
    report = ingest(bank, folder, on_progress=lambda done, total: steps.append((done, total)))
    assert (report.added, report.files) == (1, 2)
    assert [Path(problem.path).name for problem in report.problems] == ["bad.txt", "picture.png"]
    total = sum(path.stat().st_size for path in folder.iterdir())
    assert steps[-1] == (total, total) and len(steps) == 4


@pytest.mark.parametrize("content", [b"\xff\xfe\xff", b"a\0b"])
def test_a_single_file_that_is_no_text_is_an_error(bank: MemoryBank, folder: Path, content: bytes) -> None:
    path = folder / "odd.txt"
    path.write_bytes(content)
    with pytest.raises(InvalidTextError):
        ingest(bank, path)
    assert bank.namespaces() in ([], ["default"])


def test_nothing_there(bank: MemoryBank, folder: Path) -> None:
    with pytest.raises(NotFoundError):
        ingest(bank, folder / "none.md")


def test_a_name_that_is_not_utf8(bank: MemoryBank, folder: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.txt"))
    path.write_text("Words.")
    assert ingest(bank, path).added == 1
    (memory,) = bank.list()
    assert memory.source is not None and memory.source.endswith("caf\ufffd.txt")
