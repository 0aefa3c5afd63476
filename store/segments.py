"""Append-only files of frames: `segments/0001.seg`, rolled over at 256 MiB.

A segment starts with 64 bytes: magic "MNEMOSEG", version (u16), number (u32), bank id (16 bytes), zeros. The
catalog says where each segment ends; whatever lies behind that is an unfinished write.
"""

import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from pathlib import Path

from mnemos.errors import BankUnreadableError
from mnemos.store.disk import fsync_dir, punch_hole, read_exactly, start_writing, write_all, zero
from mnemos.store.ids import id_to_bytes

SEGMENT_BYTES = 256 << 20
SEGMENT_HEADER_BYTES = 64
_HEADER = struct.Struct("<8sHI16s34x")
_MAGIC = b"MNEMOSEG"
_VERSION = 1
_OPEN_FILES = 32
_BUFFER_BYTES = 4 << 20


class Segments:
    """The open files of a bank's segments."""

    def __init__(self, path: Path, bank_id: str, read_only: bool) -> None:
        self.path = path
        self._bank_id = bank_id
        self._read_only = read_only
        self._files: OrderedDict[int, int] = OrderedDict()
        self._lock = threading.Lock()
        self.buffers: list[bytearray] = []  # of the group being written; kept: fresh memory is slow to touch
        self._writer: ThreadPoolExecutor | None = None
        self._writer_pid = 0

    def name(self, number: int) -> Path:
        return self.path / f"{number:04d}.seg"

    def header(self, number: int) -> bytes:
        return _HEADER.pack(_MAGIC, _VERSION, number, id_to_bytes(self._bank_id))

    def numbers(self) -> list[int]:
        """Of the segment files that exist, in order."""
        return sorted(int(file.stem) for file in self.path.glob("*.seg") if file.stem.isdigit())

    def size(self, number: int) -> int:
        """Bytes of the file; 0 when there is none."""
        try:
            return self.name(number).stat().st_size
        except FileNotFoundError:
            return 0

    def read(self, number: int, offset: int, length: int) -> bytes:
        """Bytes of one segment; fewer where it ends. Raises BankUnreadableError when the file is gone."""
        with self._lock:
            fd = os.dup(self._fd(number))
        try:
            return read_exactly(fd, length, offset)
        finally:
            os.close(fd)

    def expect(self, pieces: Iterable[tuple[int, int, int]]) -> None:
        """Has the system fetch pieces (segment, offset, length) that will be read, all at once."""
        if not hasattr(os, "posix_fadvise"):
            return
        with self._lock, suppress(OSError, BankUnreadableError):  # reading tells what is wrong
            for number, offset, length in pieces:
                os.posix_fadvise(self._fd(number), offset, length, os.POSIX_FADV_WILLNEED)

    def write(self, number: int, offset: int, data: bytes | memoryview) -> None:
        with self._lock:
            fd = self._fd(number)
            write_all(fd, data, offset)
            if len(data) >= _BUFFER_BYTES // 2:
                start_writing(fd, offset, len(data))

    def later(self, task: Callable[[], None]) -> "Future[None]":
        """Runs a task after those before it, beside the caller."""
        if self._writer is None or self._writer_pid != os.getpid():
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="mnemos-write")
            self._writer_pid = os.getpid()  # a thread does not outlive a fork
        return self._writer.submit(task)

    def create(self, number: int) -> None:
        """A new segment with its header, its name durable."""
        self.forget_file(number)
        fd = os.open(self.name(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, 0)
            write_all(fd, self.header(number), 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        fsync_dir(self.path)

    def sync(self, number: int) -> None:
        with self._lock:
            os.fsync(self._fd(number))

    def cut(self, number: int, end: int) -> bool:
        """Zeroes and drops what lies behind `end`. True when there was something."""
        with self._lock:
            fd = self._fd(number)
            size = os.fstat(fd).st_size
            if size <= end:
                return False
            zero(fd, end, size - end)
            os.ftruncate(fd, end)
            return True

    def zero(self, number: int, ranges: list[tuple[int, int]]) -> None:
        """Zeroes (offset, length) ranges in place, makes that durable, then gives whole blocks back."""
        joined: list[tuple[int, int]] = []
        for offset, length in sorted(ranges):
            if joined and joined[-1][0] + joined[-1][1] == offset:
                joined[-1] = (joined[-1][0], joined[-1][1] + length)
            else:
                joined.append((offset, length))
        with self._lock:
            fd = self._fd(number)
            for offset, length in joined:
                zero(fd, offset, length)
            os.fsync(fd)
            for offset, length in joined:
                punch_hole(fd, offset, length)

    def allocated(self) -> int:
        """Bytes that the files take up on the disk: holes count for nothing."""
        total = 0
        for number in self.numbers():
            with suppress(FileNotFoundError):
                total += self.name(number).stat().st_blocks * 512
        return total

    def remove(self, number: int) -> None:
        """Removes the file of a segment whose frames are zeros; durable."""
        self.forget_file(number)
        self.name(number).unlink(missing_ok=True)
        fsync_dir(self.path)

    def forget_file(self, number: int) -> None:
        """Closes a segment's file, which is about to be removed."""
        with self._lock:
            fd = self._files.pop(number, None)
            if fd is not None:
                os.close(fd)

    def close(self) -> None:
        if self._writer is not None and self._writer_pid == os.getpid():
            self._writer.shutdown()
            self._writer = None
        with self._lock:
            while self._files:
                os.close(self._files.popitem()[1])

    def _fd(self, number: int) -> int:
        fd = self._files.get(number)
        if fd is not None and os.fstat(fd).st_nlink == 0:  # another process removed it
            os.close(self._files.pop(number))
            fd = None
        if fd is None:
            flags = os.O_CLOEXEC | (os.O_RDONLY if self._read_only else os.O_RDWR)
            try:
                fd = os.open(self.name(number), flags)
            except FileNotFoundError:
                raise BankUnreadableError(
                    f"Segment {self.name(number)} is missing. Restore it from a copy, or run `mnemos bank "
                    "verify`."
                ) from None
            self._files[number] = fd
            if len(self._files) > _OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
        self._files.move_to_end(number)
        return fd


class Appender:
    """One group of frames on its way to the end of the newest segment.

    Nothing it writes counts until the catalog says so: `abort` leaves the segments as they were. Writing and
    syncing go on beside the caller, who fills one buffer while the other one is written.
    """

    def __init__(self, segments: Segments, number: int, end: int, limit_bytes: int = SEGMENT_BYTES) -> None:
        self._segments = segments
        self._number = number
        self._limit = limit_bytes
        self._first = (number, end)
        self._created: list[int] = []
        if not segments.buffers:
            segments.buffers = [bytearray(_BUFFER_BYTES), bytearray(_BUFFER_BYTES)]
        self._spare, self._buffer = (memoryview(buffer) for buffer in segments.buffers)
        self._buffered_bytes = 0
        self._written: Future[None] | None = None
        self._running: list[Future[None]] = []
        self._flushed = end
        self.ends: dict[int, int] = {}
        if number:
            segments.cut(number, end)

    def append(self, frame: bytes) -> tuple[int, int]:
        """The segment and offset where the frame will lie."""
        segment, start, place = self.reserve(len(frame))
        place[:] = frame
        return segment, start

    def reserve(self, length: int) -> tuple[int, int, memoryview]:
        """The segment and offset where the next frame will lie, and the memory to write it into, at once."""
        end = self._flushed + self._buffered_bytes
        if not self._number or (end + length > self._limit and end > SEGMENT_HEADER_BYTES):
            self._roll()
            end = self._flushed
        if self._buffered_bytes + length > len(self._buffer):
            self._flush()
        if length > len(self._buffer):
            self._buffer = memoryview(bytearray(length))  # a rare one, for this group alone
        place = self._buffer[self._buffered_bytes : self._buffered_bytes + length]
        self._buffered_bytes += length
        self.ends[self._number] = end + length
        return self._number, end, place

    def start_sync(self, *others: Callable[[], None]) -> None:
        """Sees to it that everything appended so far, and what `others` write, gets to the disk."""
        self._flush()
        for number in list(self.ends):
            self._running.append(self._segments.later(partial(self._segments.sync, number)))
        self._running += [self._segments.later(other) for other in others]

    def finish_sync(self) -> None:
        """Everything that `start_sync` began with is on the disk."""
        running, self._running = self._running, []
        for task in running:
            task.result()

    def sync(self) -> None:
        """Everything appended so far is on the disk."""
        self.start_sync()
        self.finish_sync()

    def abort(self) -> None:
        """Takes the group back as far as the disk lets us; the next open does the rest."""
        wait(self._running)
        self._buffered_bytes = 0
        number, end = self._first
        if number:
            self._segments.cut(number, end)
        for created in self._created:
            self._segments.cut(created, SEGMENT_HEADER_BYTES)

    def _roll(self) -> None:
        self._flush()
        self._number += 1
        self._segments.create(self._number)
        self._created.append(self._number)
        self._flushed = SEGMENT_HEADER_BYTES

    def _flush(self) -> None:
        if not self._buffered_bytes:
            return
        if self._written is not None:
            self._written.result()
        number, offset, data = self._number, self._flushed, self._buffer[: self._buffered_bytes]
        self._written = self._segments.later(partial(self._segments.write, number, offset, data))
        self._running.append(self._written)
        self._flushed += self._buffered_bytes
        self._buffered_bytes = 0
        self._spare, self._buffer = self._buffer, self._spare
