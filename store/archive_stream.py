"""An archive as a stream: lines to zstd and back, in groups that a running digest vouches for."""

import base64
import binascii
import hashlib
import io
from collections.abc import Iterator
from typing import Any

import zstandard

from mnemos.errors import ArchiveError, InvalidNamespaceError
from mnemos.store import archive_lines as lines
from mnemos.store.archive_cipher import Source
from mnemos.store.archive_records import ArchivedMemory, ArchivedSession, ArchivedTrace, Group
from mnemos.store.ids import check_namespace
from mnemos.store.records import MemoryDraft, UseRecord
from mnemos.store.words import from_us

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_LEVEL = 3
_READ_BYTES = 64 << 10
_MAX_WINDOW_BYTES = 8 << 20  # of memory that a compressed stream may ask for
_MAX_RATIO, _FREE_BYTES = 4096, 64 << 20  # more than text or traces ever reach
_CUT = "the archive is cut off: it has no last line. Take another copy of it"


class LineWriter:
    """Writes lines, compressed; `check` closes a group."""

    def __init__(self, out: Any) -> None:
        """`out` has `write` and `flush`."""
        self._zstd = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).stream_writer(
            out, closefd=False
        )
        self._digest = hashlib.sha256()

    def line(self, value: lines.Line) -> int:
        """Bytes of the line."""
        data = value.model_dump_json().encode("utf-8") + b"\n"
        self._digest.update(data)
        self._zstd.write(data)
        return len(data)

    def check(self) -> None:
        self.line(lines.CheckLine(sha256=self._digest.hexdigest()))
        self._zstd.flush(zstandard.FLUSH_BLOCK)  # so that a cut archive gives up its groups up to the cut

    def end(self, *, namespaces: int, memories: int, traces: int) -> None:
        self.line(
            lines.EndLine(
                namespaces=namespaces, memories=memories, traces=traces, sha256=self._digest.hexdigest()
            )
        )
        self._zstd.flush(zstandard.FLUSH_FRAME)


class GroupReader:
    """Reads the groups of an archive, each checked before it is handed out. Holds one group at a time."""

    def __init__(self, source: Source) -> None:
        """Reads the header. ArchiveError."""
        self._counted = _Counted(source)
        self._zstd = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).stream_reader(
            self._counted,  # type: ignore[arg-type]
            read_across_frames=True,
            closefd=False,
        )
        self._held, self._at = b"", 0  # raw bytes, and how many of them are used up
        self._raw_bytes = 0
        self._digest = hashlib.sha256()
        self._before = ""  # the digest of all lines before the latest
        self._line_bytes = 0
        self.number = 0
        header = self._next()
        if not isinstance(header, lines.HeaderLine):
            raise ArchiveError("this is no archive of Mnemos; `--format` names other formats")
        self.header = header

    @property
    def read_bytes(self) -> int:
        """Compressed bytes read so far."""
        return self._counted.bytes

    def groups(self, *, fingerprint: str | None) -> Iterator[Group]:
        """Every group up to the last line. Of traces, only those of that model are kept.

        Raises ArchiveError at the first thing that is not as it was written; the groups before it hold.
        """
        group: Group | None = None
        spaces = memories = traces = group_bytes = trace_bytes = 0
        while True:
            line = self._next()
            if not isinstance(line, lines.PartLine):
                group_bytes += self._line_bytes
            if isinstance(line, lines.EndLine):
                self._finish(line, (spaces, memories, traces), is_open=bool(group and group.memories))
                return
            if isinstance(line, lines.NamespaceLine):
                if group is not None and group.memories:
                    raise self._wrong("a namespace begins within a group")
                group, spaces, group_bytes = self._begin(line), spaces + 1, 0
            elif group is None or isinstance(line, lines.HeaderLine):
                raise self._wrong("it comes out of order")
            elif isinstance(line, lines.SessionLine):
                if line.id in group.sessions:
                    raise self._wrong("a session comes twice in a group")
                group.sessions[line.id] = _session(line)
            elif isinstance(line, lines.MemoryLine):
                group.memories.append(_memory(line))
                memories += 1
            elif isinstance(line, lines.TraceLine):
                size = line.kv_bytes + line.route_bytes
                trace_bytes += size
                if not group.memories or group.memories[-1].id != line.memory or size > lines.MAX_TRACE_BYTES:
                    raise self._wrong("a trace does not fit the memory before it")
                traces += 1
                trace = self._trace(line, is_wanted=line.fingerprint == fingerprint)
                if trace is not None:
                    group.traces[line.memory] = trace
            elif isinstance(line, lines.CheckLine):
                self._compare(line.sha256)
                if not group.memories:
                    raise self._wrong("a group holds no memory")
                yield group
                group = Group(group.namespace, group.namespace_id)
                group_bytes = trace_bytes = 0
            else:
                raise self._wrong("it comes out of order")
            if (
                max(len(group.memories), len(group.sessions)) > lines.MAX_GROUP_MEMORIES
                or group_bytes > lines.MAX_GROUP_LINE_BYTES
                or trace_bytes > lines.MAX_GROUP_TRACE_BYTES
            ):
                raise self._wrong("a group is larger than any that Mnemos writes")

    def _begin(self, line: lines.NamespaceLine) -> Group:
        try:
            return Group(check_namespace(line.name), line.id)
        except InvalidNamespaceError:
            raise self._wrong("its namespace has a name that no namespace can have") from None

    def _finish(self, line: lines.EndLine, counts: tuple[int, int, int], *, is_open: bool) -> None:
        self._compare(line.sha256)
        if is_open or counts != (line.namespaces, line.memories, line.traces):
            raise self._wrong("its counts are not those of the lines before it")
        if self._at < len(self._held) or self._read():
            raise ArchiveError("something follows the archive's last line, where nothing should be")

    def _trace(self, line: lines.TraceLine, *, is_wanted: bool) -> ArchivedTrace | None:
        """The parts that follow, joined; None where they aren't wanted, or are not what they should be."""
        left = line.kv_bytes + line.route_bytes
        parts: list[bytes] = []
        while left > 0:
            part = self._next()
            if not isinstance(part, lines.PartLine):
                raise self._wrong("a trace is not whole")
            try:
                data = base64.b64decode(part.data, validate=True)
            except (binascii.Error, ValueError):
                raise self._wrong("a trace is damaged") from None
            if not data or len(data) > left:
                raise self._wrong("a trace is not of the length it should have")
            left -= len(data)
            if is_wanted:
                parts.append(data)
        if not is_wanted:
            return None
        payload = b"".join(parts)
        if hashlib.sha256(payload).hexdigest() != line.sha256:
            return None
        kv, route = payload[: line.kv_bytes], payload[line.kv_bytes :]
        return ArchivedTrace(line.memory, line.fingerprint, line.tokens, kv, route)

    def _compare(self, digest: str) -> None:
        if digest != self._before:
            raise ArchiveError(
                f"the archive is damaged before its line {self.number}. Take another copy of it"
            )

    def _wrong(self, what: str) -> ArchiveError:
        return ArchiveError(f"line {self.number} of the archive: {what}. Take another copy of it")

    def _next(self) -> lines.Line:
        self._before = self._digest.hexdigest()
        parts: list[bytes] = []
        size = 0
        while (at := self._held.find(b"\n", self._at)) < 0:
            parts.append(self._held[self._at :])
            size += len(parts[-1])
            if size > lines.MAX_LINE_BYTES:
                raise ArchiveError(f"line {self.number + 1} of the archive is longer than any can be")
            self._held, self._at = self._read(), 0
            if not self._held:
                if self.number == 0:
                    raise ArchiveError("this is no archive of Mnemos; `--format` names other formats")
                raise ArchiveError(_CUT)
        data = b"".join([*parts, self._held[self._at : at + 1]])
        self._at = at + 1
        self._digest.update(data)
        self._line_bytes = len(data)
        self.number += 1
        return lines.parse(data, self.number)

    def _read(self) -> bytes:
        try:
            data = self._zstd.read(_READ_BYTES)
        except zstandard.ZstdError:
            if self.number == 0:
                raise ArchiveError("this is no archive of Mnemos, or its first bytes are damaged") from None
            raise ArchiveError(
                f"the archive is damaged behind its line {self.number}. Take another copy of it"
            ) from None
        self._raw_bytes += len(data)
        if self._raw_bytes > max(_FREE_BYTES, _MAX_RATIO * self._counted.bytes):
            raise ArchiveError("the archive swells to more than any that Mnemos writes; it was not read on")
        return data


class _Counted(io.RawIOBase):
    """A source, and how many bytes were read of it."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.bytes = 0

    def read(self, size: int = -1, /) -> bytes:
        data = self._source.read(size)
        self.bytes += len(data)
        return data


def _session(line: lines.SessionLine) -> ArchivedSession:
    return ArchivedSession(line.id, line.title, from_us(line.created_us), from_us(line.updated_us))


def _memory(line: lines.MemoryLine) -> ArchivedMemory:
    draft = MemoryDraft(
        text=line.text,
        kind=line.kind,
        reply=line.reply,
        speaker=line.speaker,
        title=line.title,
        source=line.source,
        session_id=line.session,
        created_at=from_us(line.created_us),
        expires_at=None if line.expires_us is None else from_us(line.expires_us),
        tags=tuple(line.tags),
        status=line.status,
    )
    return ArchivedMemory(
        draft=draft,
        id=line.id,
        pinned=line.pinned,
        hidden=line.hidden,
        uses=tuple(
            UseRecord(use.memory, use.rank, use.score, use.signals, use.attention, use.cited)
            for use in line.uses
        ),
        content_tag=None if line.content is None else bytes.fromhex(line.content),
    )
