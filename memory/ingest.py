"""Reads files and directories into a bank, once: the same content a second time adds nothing."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mnemos.errors import InvalidTextError, MnemosError
from mnemos.memory.bank import DEFAULT_NAMESPACE, MemoryBank
from mnemos.memory.chunk import Chunk, chunk_text, iter_files, read_text
from mnemos.store.records import MemoryDraft

GROUP = 64  # chunks that are written as one durable group


@dataclass(frozen=True, slots=True)
class IngestProblem:
    """A file that was left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What an ingest did. `added` and `skipped` count chunks, `skipped` those the namespace held already."""

    added: int
    skipped: int
    files: int
    problems: tuple[IngestProblem, ...]


def ingest(
    bank: MemoryBank,
    path: str | os.PathLike[str],
    *,
    namespace: str = DEFAULT_NAMESPACE,
    tags: Sequence[str] = (),
    on_progress: Callable[[int, int], None] | None = None,
) -> IngestReport:
    """Remember a file, or every text file of a directory, in chunks of a few hundred characters.

    Idempotent by content, so it may be repeated after an interruption or an edit: only what is new is added.
    Hidden files, links and caches of a directory are passed over; files that can't be read as text are
    listed as problems. `on_progress(done_bytes, total_bytes)`. Raises `NotFoundError` when there is nothing
    at `path`, `InvalidTextError` when a single named file can't be read as text.
    """
    root = Path(path).expanduser()
    files = list(iter_files(root))
    sizes = [_size(file) for file in files]
    problems: list[IngestProblem] = []
    added = skipped = read = done_bytes = 0
    for file, size in zip(files, sizes, strict=True):
        try:
            text = _read(file)
        except MnemosError as error:
            if file == root:
                raise
            problems.append(IngestProblem(source_of(file), str(error)))
        else:
            read += 1
            new, known = _remember(bank, file, text, namespace, tags)
            added, skipped = added + new, skipped + known
        done_bytes += size
        if on_progress:
            on_progress(done_bytes, sum(sizes))
    return IngestReport(added, skipped, read, tuple(problems))


def source_of(path: str | os.PathLike[str]) -> str:
    """The `source` that memories of this file carry: its absolute path."""
    absolute = os.path.abspath(Path(path).expanduser())  # noqa: PTH100  # keeps links, as the person named them
    return os.fsencode(absolute).decode("utf-8", "replace")


def _remember(
    bank: MemoryBank, file: Path, text: str, namespace: str, tags: Sequence[str]
) -> tuple[int, int]:
    """How many chunks of one file were added, and how many were known."""
    now = datetime.now(UTC)
    drafts = [
        MemoryDraft(
            text=chunk.text,
            kind="document",
            title=chunk.title or source_of(file).rpartition(os.sep)[2],
            source=source_of(file),
            tags=tuple(tags),
            created_at=now,
            content_key=content_key(chunk),
        )
        for chunk in chunk_text(text, suffix=file.suffix)
    ]
    new: set[str] = set()
    for first in range(0, len(drafts), GROUP):
        group = bank.remember_many(drafts[first : first + GROUP], namespace=namespace)
        # The bank answers a draft it knows with the memory that it holds, which is older.
        new.update(memory.id for memory in group if memory.created_at == now)
    return len(new), len(drafts) - len(new)


def content_key(chunk: Chunk) -> bytes:
    """What makes two chunks the same: their title and their text, wherever the file lies."""
    digest = hashlib.sha256()
    for part in (chunk.title or "", chunk.text):
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.digest()


def _read(file: Path) -> str:
    try:
        return read_text(file)
    except OSError as error:
        raise InvalidTextError(f"{file} can't be read: {os.strerror(error.errno or 0)}") from None


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
