"""Exporting memories to an archive and importing one. The format is docs/formats/archive.md."""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mnemos.errors import ArchiveError, InvalidTextError, MnemosError, StalePlanError, UsageError
from mnemos.memory.archive_records import ExportReport, ImportReport
from mnemos.memory.archive_traces import is_sound_trace
from mnemos.store.ids import check_namespace

if TYPE_CHECKING:
    from mnemos.store.archive_records import ArchivedMemory, Group
    from mnemos.store.store import Store

MODEL_SETTING, MODEL_NAME_SETTING = "trace_fingerprint", "trace_model"
_ATTEMPTS = 3  # exports to a file, while other processes erase
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which memories an export takes: every condition that is set must hold."""

    ids: Sequence[str] | None = None  # whole ones
    session_id: str | None = None
    tags: Sequence[str] | None = None
    matching: str | None = None
    source: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    include_hidden: bool = False

    @property
    def is_filtered(self) -> bool:
        return any(
            value is not None
            for value in (
                self.ids,
                self.session_id,
                self.tags,
                self.matching,
                self.source,
                self.since,
                self.until,
            )
        )


def export(
    store: "Store",
    target: str | os.PathLike[str] | IO[bytes],
    namespaces: Sequence[str] | None,
    chosen: Chosen,
    *,
    traces: bool,
    passphrase: str | None,
    overwrite: bool,
    on_progress: OnProgress | None,
) -> ExportReport:
    """Writes an archive to a file (mode 0600, whole or not at all) or into an open binary stream."""
    names = sorted(store.namespaces()) if namespaces is None else list(dict.fromkeys(namespaces))
    for name in names:
        check_namespace(name)

    def write(out: IO[bytes]) -> ExportReport:
        return _write(store, out, names, chosen, traces, passphrase, on_progress)

    if not isinstance(target, (str, os.PathLike)):
        return write(target)
    path = Path(target).expanduser()
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists already; choose another name, or say to overwrite it")
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with _whole_file(path) as file:
                return write(file)
        except StalePlanError:
            if attempt == _ATTEMPTS:
                raise
    raise AssertionError("unreachable: the last attempt returns or raises")


def _write(
    store: "Store",
    out: IO[bytes],
    names: Sequence[str],
    chosen: Chosen,
    traces: bool,
    passphrase: str | None,
    on_progress: OnProgress | None,
) -> ExportReport:
    from mnemos.store.archive_cipher import SealingWriter
    from mnemos.store.words import Filter

    target = _Target(out)
    sealing = None if passphrase is None else SealingWriter(target, passphrase)
    done = store.export(
        target if sealing is None else sealing,
        names,
        Filter(
            ids=chosen.ids,
            session_id=chosen.session_id,
            tags=chosen.tags,
            matching=chosen.matching,
            source=chosen.source,
            since=chosen.since,
            until=chosen.until,
            include_hidden=chosen.include_hidden,
        ),
        traces=traces,
        is_filtered=chosen.is_filtered,
        model=(store.get_setting(MODEL_NAME_SETTING), store.get_setting(MODEL_SETTING)),
        on_progress=on_progress,
    )
    if sealing is not None:
        sealing.close()
    target.flush()
    return ExportReport(
        namespaces=done.namespaces,
        sessions=done.sessions,
        memories=done.memories,
        traces=done.traces,
        traces_left_out=done.traces_left_out,
        encrypted=sealing is not None,
        bytes=target.bytes,
    )


class _Target:
    """A stream that is written to; what its disk says is not taken for what the bank's says."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self.bytes = 0

    def write(self, data: bytes) -> int:
        with _target_errors():
            view = memoryview(data)
            while view:  # a raw stream may take less than it is given
                taken = self._out.write(view)
                view = view[len(view) if taken is None else taken :]
        self.bytes += len(data)
        return len(data)

    def flush(self) -> None:
        with _target_errors():
            self._out.flush()


@contextmanager
def _target_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ArchiveError(
            f"the archive can't be written: {os.strerror(error.errno or 0)}. Nothing of it was kept"
        ) from None


@contextmanager
def _whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file of mode 0600 that appears under its name when the block ends, and not when it raises."""
    from mnemos.store.disk import fsync_dir, zero_and_unlink

    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ArchiveError(f"{path} can't be written: {os.strerror(error.errno or 0)}") from None
    try:
        with os.fdopen(fd, "wb") as file:
            yield file
            with _target_errors():
                file.flush()
                os.fsync(fd)
        with _target_errors():
            part.replace(path)
            fsync_dir(path.parent)
    except BaseException:
        with suppress(OSError):
            zero_and_unlink(part)
        raise


def import_archive(
    store: "Store",
    source: IO[bytes],
    *,
    into: str | None,
    passphrase: str | Callable[[], str] | None,
    restore_erased: bool,
    on_progress: Callable[[int], None] | None,
) -> ImportReport:
    """Merges an archive, group by group. ArchiveError says how many memories are in by then."""
    from mnemos.store.archive_cipher import MAGIC, OpeningReader
    from mnemos.store.archive_stream import GroupReader

    if into is not None:
        check_namespace(into)
    opened: Any = source
    if _peek(source, len(MAGIC)) == MAGIC:
        if passphrase is None:
            raise UsageError("the archive is encrypted; give its passphrase")
        opened = OpeningReader(source, passphrase if isinstance(passphrase, str) else passphrase())
    reader = GroupReader(opened)
    fingerprint = store.get_setting(MODEL_SETTING)
    tally = Tally()
    merger = store.merger(restore_erased=restore_erased)
    wanted = fingerprint or reader.header.fingerprint
    try:
        for group in reader.groups(fingerprint=wanted):
            _prepare(group)
            name = into or group.namespace
            done = merger.merge(name, group)
            tally.add(done)
            taken = merger.put_traces(name, group, done)
            tally.traces += taken
            if taken and fingerprint is None and reader.header.model:
                fingerprint = wanted
                store.set_setting(MODEL_SETTING, wanted or "")
                store.set_setting(MODEL_NAME_SETTING, reader.header.model)
            if on_progress is not None:
                on_progress(reader.read_bytes)
    except MnemosError as error:
        raise with_count(error, tally) from None
    return tally.report("archive")


@dataclass(slots=True)
class Tally:
    """The sums of an import's groups."""

    added: int = 0
    known: int = 0
    erased_before: int = 0
    replies_withheld: int = 0
    expired: int = 0
    sessions: int = 0
    traces: int = 0

    def add(self, done: Any) -> None:
        self.added += len(done.added)
        for name in ("known", "erased_before", "replies_withheld", "expired", "sessions"):
            setattr(self, name, getattr(self, name) + getattr(done, name))

    def report(self, format: str, **more: Any) -> ImportReport:
        sums = {name: getattr(self, name) for name in self.__slots__}
        return ImportReport(format=format, **sums, **more)


def with_count(error: MnemosError, tally: Tally) -> MnemosError:
    """The error, of its kind, with what is in the bank by now."""
    kind = ArchiveError if isinstance(error, InvalidTextError) else type(error)
    so_far = (
        f"{tally.added} memories before that are imported, and an import of a whole copy goes on from there"
        if tally.added
        else "Nothing was added"
    )
    return kind(f"{str(error).rstrip('.')}. {so_far}.")


def _prepare(group: "Group") -> None:
    """Drops traces that can't be their memories', and says what makes documents the same as ingested ones."""
    group.memories = [
        replace(memory, draft=replace(memory.draft, content_key=_key_of(memory))) for memory in group.memories
    ]
    group.traces = {memory_id: trace for memory_id, trace in group.traces.items() if is_sound_trace(trace)}


def _key_of(memory: "ArchivedMemory") -> bytes | None:
    """The key that an ingest or an import of the same content would give it."""
    from mnemos.memory.chunk import Chunk
    from mnemos.memory.importing_conversation import exchange_key
    from mnemos.memory.ingest import content_key

    draft = memory.draft
    if draft.kind == "document" and draft.source is not None:
        name = draft.source.rpartition(os.sep)[2]
        title = None if draft.title == name else draft.title
        return content_key(Chunk(draft.text, title, 1, 1))
    # With provenance it was made by Mnemos, and an erase may take its reply: no trace of that may stay.
    return exchange_key(draft) if draft.kind == "exchange" and not memory.uses else None


def _peek(source: IO[bytes], size: int) -> bytes:
    return source.peek(size)[:size] if isinstance(source, io.BufferedReader) else b""
