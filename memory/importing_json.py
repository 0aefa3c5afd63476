"""The elements of a large JSON array one by one, and the lines of JSONL, in bounded memory."""

import json
import re
from collections.abc import Iterator
from typing import IO, Any

from mnemos.errors import ArchiveError

MAX_RECORD_BYTES = 64 << 20  # one conversation
_READ_BYTES = 256 << 10
_MARKS = re.compile(rb'["\\{}\[\]]')
_SPACE = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"


def array_elements(source: IO[bytes]) -> Iterator[bytes]:
    """The objects of the outermost array, as they stand. ArchiveError when it is no array or is cut off."""
    buffer = _Buffer(source)
    if buffer.skip_space() != b"[":
        raise ArchiveError("the file holds no JSON list of conversations")
    buffer.take(1)
    is_first = True
    while True:
        mark = buffer.skip_space()
        if mark == b"]":
            buffer.take(1)
            if buffer.skip_space():
                raise ArchiveError("something follows the list of conversations, where nothing should be")
            return
        if not is_first:
            if mark != b",":
                raise _broken(mark)
            buffer.take(1)
            mark = buffer.skip_space()
        if mark != b"{":
            raise _broken(mark)
        yield buffer.take(_end_of_object(buffer))
        is_first = False


def jsonl_lines(source: IO[bytes]) -> Iterator[bytes]:
    """Lines that are not blank. ArchiveError for one that is longer than any conversation."""
    while line := source.readline(MAX_RECORD_BYTES + 1):
        if len(line) > MAX_RECORD_BYTES:
            raise ArchiveError(f"a line is over {MAX_RECORD_BYTES >> 20} MiB; that is no conversation")
        line = line.removeprefix(_BOM).strip(_SPACE)
        if line:
            yield line


def load_object(data: bytes) -> dict[str, Any]:
    """One JSON object. ValueError, which may repeat what it holds: it is not for people."""
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _broken(mark: bytes) -> ArchiveError:
    what = "is damaged between two conversations" if mark else "is cut off"
    return ArchiveError(f"the list of conversations {what}. Export it anew")


class _Buffer:
    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self.held = bytearray()
        self.more()
        if self.held.startswith(_BOM):
            del self.held[:3]

    def more(self) -> bool:
        data = self._source.read(_READ_BYTES)
        self.held += data
        return bool(data)

    def skip_space(self) -> bytes:
        """The next byte that is not white space, left where it is; none at the end."""
        while True:
            del self.held[: len(self.held) - len(self.held.lstrip(_SPACE))]
            if self.held or not self.more():
                return bytes(self.held[:1])

    def take(self, size: int) -> bytes:
        taken = bytes(self.held[:size])
        del self.held[:size]
        return taken


def _end_of_object(buffer: _Buffer) -> int:
    """Bytes up to the brace that closes the object at the buffer's start."""
    at = depth = 0
    in_string = False
    while True:
        mark = _MARKS.search(buffer.held, at)
        if mark is None:
            at = len(buffer.held)
            if at > MAX_RECORD_BYTES:
                raise ArchiveError(f"a conversation is over {MAX_RECORD_BYTES >> 20} MiB")
            del mark  # it would keep the buffer from growing
            if not buffer.more():
                raise _broken(b"")
            continue
        char, at = mark[0], mark.end()
        del mark
        if in_string:
            if char == b"\\":
                at += 1  # whatever it escapes; \u's digits are no marks
            elif char == b'"':
                in_string = False
        elif char == b'"':
            in_string = True
        elif char in (b"{", b"["):
            depth += 1
        elif char in (b"}", b"]"):
            depth -= 1
            if depth == 0:
                return at
