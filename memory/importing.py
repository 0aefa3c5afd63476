"""Importing what other programs export: finding out the form, and merging conversations into a namespace."""

import io
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, Literal

from mnemos.errors import ArchiveError, InvalidTextError, MnemosError, NotFoundError, UsageError
from mnemos.memory.archive_records import ImportProblem, ImportReport
from mnemos.memory.archiving import Tally, import_archive, with_count
from mnemos.memory.importing_conversation import Conversation, Format, exchanges, to_memories
from mnemos.memory.importing_formats import READERS, format_of
from mnemos.memory.importing_json import array_elements, jsonl_lines, load_object
from mnemos.memory.ingest import source_of
from mnemos.store.archive_cipher import MAGIC
from mnemos.store.archive_records import ArchivedMemory, ArchivedSession, Group
from mnemos.store.ids import check_namespace

if TYPE_CHECKING:
    from mnemos.store.store import Store

ImportFormat = Literal["auto", "archive", "chatgpt", "claude", "jsonl"]
_ZSTD_MAGIC, _ZIP_MAGIC = b"\x28\xb5\x2f\xfd", b"PK\x03\x04"
_GROUP = 250  # memories made durable together
_MAX_PROBLEMS = 1000  # that are kept one by one
_MAX_FLAT = 1000  # messages of one log that are held at a time
_MAX_ZIP_BYTES = 16 << 30
_MAX_ZIP_RATIO = 1000


def import_any(
    store: "Store",
    source: str | os.PathLike[str] | IO[bytes],
    *,
    format: ImportFormat,
    into: str | None,
    default_namespace: str,
    passphrase: str | Callable[[], str] | None,
    restore_erased: bool,
    on_progress: Callable[[int, int], None] | None,
) -> ImportReport:
    """An archive of Mnemos, or conversations of another program. `on_progress(read_bytes, total_bytes)`."""
    if into is not None:
        check_namespace(into)
    with ExitStack() as stack:
        file, name = _opened(source, stack)
        total = _size(file)
        head = file.peek(len(MAGIC))[:512]
        is_archive = head.startswith((_ZSTD_MAGIC, MAGIC))
        if format == "archive" or (format == "auto" and is_archive):
            return import_archive(
                store,
                file,
                into=into,
                passphrase=passphrase,
                restore_erased=restore_erased,
                on_progress=None if on_progress is None else lambda done: on_progress(done, max(total, done)),
            )
        if is_archive:
            raise UsageError(f"this is an archive of Mnemos, not an export of {format}; leave --format out")
        namespace = into or default_namespace
        check_namespace(namespace)
        run = _Run(store, namespace, name, format, restore_erased)
        try:
            with _zip_errors():
                for part in _parts(file, head, stack):
                    run.read(part)
                    if on_progress is not None:
                        on_progress(total, total)
        except MnemosError as error:
            raise with_count(error, run.tally) from None
        return run.report()


def _opened(
    source: str | os.PathLike[str] | IO[bytes], stack: ExitStack
) -> tuple[io.BufferedReader, str | None]:
    if isinstance(source, (str, os.PathLike)):
        path = Path(source).expanduser()
        try:
            return stack.enter_context(path.open("rb")), source_of(path)
        except FileNotFoundError:
            raise NotFoundError(f"no file at {path}") from None
        except OSError as error:
            raise ArchiveError(f"{path} can't be read: {os.strerror(error.errno or 0)}") from None
    if isinstance(source, io.BufferedReader):
        return source, None
    return io.BufferedReader(_Raw(source)), None


class _Raw(io.RawIOBase):
    """A binary stream of any kind, as a buffered reader wants it."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._source.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _size(file: io.BufferedReader) -> int:
    try:
        return os.fstat(file.fileno()).st_size
    except OSError:
        return 0


def _parts(file: io.BufferedReader, head: bytes, stack: ExitStack) -> Iterator[IO[bytes]]:
    """The file itself, or the conversation files of a zip, none of which is ever unpacked to disk."""
    if not head.startswith(_ZIP_MAGIC):
        yield file
        return
    if not file.seekable():
        raise UsageError("a zip can't be read from a pipe; name the file, or pipe its conversations.json")
    archive = stack.enter_context(zipfile.ZipFile(file))
    found = sorted(
        (info for info in archive.infolist() if _is_conversations(info.filename)),
        key=lambda info: info.filename,
    )
    if not found:
        raise NotFoundError("the zip holds no conversations.json")
    for info in found:
        if info.file_size > _MAX_ZIP_BYTES or info.file_size > _MAX_ZIP_RATIO * max(
            info.compress_size, 1 << 20
        ):
            raise ArchiveError("the zip's conversations swell to more than any export; it was not read")
        if info.flag_bits & 1:
            raise UsageError("the zip is encrypted; unpack it, and import its conversations.json")
        with archive.open(info) as part:
            yield part


def _is_conversations(name: str) -> bool:
    path = PurePosixPath(name)
    is_plain = not path.is_absolute() and ".." not in path.parts and "\\" not in name
    return is_plain and path.name.startswith("conversations") and path.suffix == ".json"


@contextmanager
def _zip_errors() -> Iterator[None]:
    import zlib

    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ArchiveError(f"the zip is damaged ({type(error).__name__}). Take another copy of it") from None


class _Run:
    """One import of conversations: what was read, what is waiting to be written, what went wrong."""

    def __init__(
        self, store: "Store", namespace: str, source: str | None, format: ImportFormat, restore_erased: bool
    ) -> None:
        self.tally = Tally()
        self._merger = store.merger(restore_erased=restore_erased)
        self._namespace = namespace
        self._source = source
        self._fixed: Format | None = next((known for known in READERS if known == format), None)
        self._format = self._fixed  # of the first record, where none is fixed
        self._waiting = Group(namespace)
        self._skipped = 0
        self._record = 0
        self._problems: list[ImportProblem] = []
        self._log: list[dict[str, Any]] = []  # messages on lines of their own, of one conversation
        self._log_before = 0
        self._log_id = ""

    def read(self, part: IO[bytes]) -> None:
        """Every record; bad ones are noted and passed over."""
        reader = part if isinstance(part, io.BufferedReader) else io.BufferedReader(part)  # type: ignore[type-var]
        first = reader.peek(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        if not first:
            raise ArchiveError("the file is empty")
        is_list = first == b"["
        if self._fixed in ("chatgpt", "claude") and not is_list:
            raise ArchiveError(f"a {self._fixed} export is a JSON list of conversations, which this is not")
        if self._fixed == "jsonl" and is_list:
            raise ArchiveError("a JSONL file has an object on each line, which this has not")
        for data in array_elements(reader) if is_list else jsonl_lines(reader):
            self._record += 1
            try:
                self._take(data)
            except InvalidTextError as error:
                self._note(str(error))
            except (ValueError, TypeError, KeyError, AttributeError):
                self._note("it is not in the form that it should be")
        self._end_log()
        self._flush()

    def report(self) -> ImportReport:
        if self._record and len(self._problems) == self._record and self._format is None:
            raise ArchiveError("no record of the file is a conversation that Mnemos knows; see --format")
        return self.tally.report(
            self._format or "jsonl", skipped_messages=self._skipped, problems=tuple(self._problems)
        )

    def _take(self, data: bytes) -> None:
        record = load_object(data)
        found = self._fixed or format_of(record) or self._format
        if found is None:
            raise InvalidTextError("it is no conversation of ChatGPT or Claude, and no chat message")
        self._format = self._format or found
        if found == "jsonl" and "messages" not in record:
            self._take_line(record)
            return
        self._end_log()
        self._add(READERS[found](record), found)

    def _take_line(self, record: dict[str, Any]) -> None:
        """A message by itself belongs to the conversation of the line before, if its session is the same."""
        READERS["jsonl"]({"messages": [record]})  # so that a bad one is noted under its own number
        session = record.get("session")
        if self._log and session != self._log[0].get("session"):
            self._end_log()
        if len(self._log) >= _MAX_FLAT and record.get("role") in ("user", "human"):
            self._end_log(is_whole=False)
        self._log.append(record)

    def _end_log(self, *, is_whole: bool = True) -> None:
        if self._log:
            session = self._log[0].get("session")
            found = READERS["jsonl"]({"messages": self._log, "session": session})
            self._log_id = self._log_id or found.id
            count = len(exchanges(found.messages))
            self._add(_part_of(found, self._log_id, self._log_before), "jsonl")
            self._log_before += count
        self._log = []
        if is_whole:
            self._log_id, self._log_before = "", 0

    def _add(self, conversation: Conversation, program: Format) -> None:
        self._skipped += conversation.skipped
        session, memories = to_memories(conversation, program, self._source)
        for memory in memories:
            self._put(session, memory)

    def _put(self, session: ArchivedSession, memory: ArchivedMemory) -> None:
        self._waiting.sessions[session.id] = session
        self._waiting.memories.append(memory)
        if len(self._waiting.memories) >= _GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._waiting.memories:
            self.tally.add(self._merger.merge(self._namespace, self._waiting))
        self._waiting = Group(self._namespace)

    def _note(self, reason: str) -> None:
        if len(self._problems) < _MAX_PROBLEMS:
            self._problems.append(ImportProblem(record=self._record, reason=reason))


def _part_of(found: Conversation, conversation_id: str, before: int) -> Conversation:
    from dataclasses import replace

    return replace(found, id=conversation_id, before=before)
