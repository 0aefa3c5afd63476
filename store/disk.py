"""What the operating system is asked for: durable writes, zeros, holes, room, and errors to act on."""

import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DBAPIError, NoResultFound

from mnemos.errors import BankFullError, BankLockedError, BankReadOnlyError, BankUnreadableError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
_RESERVE_BYTES = 8 << 20  # kept free, so that an erase always has room for its own records
_ZEROS = bytes(1 << 20)
_PUNCH_HOLE = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_START_WRITING = 0x02  # SYNC_FILE_RANGE_WRITE
_BLOCK_BYTES = 4096
_HOLE_BYTES = 64 << 10  # a hole costs a write of the file system's journal


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """pwrite until everything is written."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def read_exactly(fd: int, length: int, offset: int) -> bytes:
    """`length` bytes, or fewer where the file ends."""
    parts: list[bytes] = []
    while length > 0:
        part = os.pread(fd, length, offset)
        if not part:
            break
        parts.append(part)
        length, offset = length - len(part), offset + len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def fsync_dir(path: Path) -> None:
    """Makes the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(path: Path) -> None:
    """A directory for its owner only, with what lies above it; their names durable. There already is fine."""
    if path.is_dir():
        return
    if not path.parent.is_dir():
        make_folder(path.parent)
    path.mkdir(exist_ok=True, mode=0o700)
    fsync_dir(path.parent)


def zero(fd: int, offset: int, length: int) -> None:
    """Overwrites bytes with zeros in place; the caller syncs."""
    for start in range(0, length, len(_ZEROS)):
        write_all(fd, memoryview(_ZEROS)[: min(len(_ZEROS), length - start)], offset + start)


def zero_and_unlink(path: Path) -> None:
    """Overwrites a whole file with zeros, makes that durable, then removes it. Gone already is fine."""
    try:
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        zero(fd, 0, os.fstat(fd).st_size)
        os.fsync(fd)
    finally:
        os.close(fd)
    path.unlink(missing_ok=True)


def punch_hole(fd: int, offset: int, length: int) -> bool:
    """Gives whole blocks of a zeroed range back to the file system. False where it can't be done, or where it
    costs more than it gains.
    """
    if length < _HOLE_BYTES:
        return False
    start = -(-offset // _BLOCK_BYTES) * _BLOCK_BYTES
    end = (offset + length) // _BLOCK_BYTES * _BLOCK_BYTES
    fallocate = _libc("fallocate", ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if fallocate is None or end <= start:
        return False
    done: int = fallocate(fd, _PUNCH_HOLE, start, end - start)
    return done == 0


def start_writing(fd: int, offset: int, length: int) -> None:
    """Has the kernel begin to write a range to the disk: the sync later waits for less. Only a hint."""
    begin = _libc("sync_file_range", ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    if begin is not None:
        begin(fd, offset, length, _START_WRITING)


@cache
def _libc(name: str, *arguments: Any) -> Any:
    """A function of Linux on an open file that Python does not offer; None elsewhere."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        call = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (OSError, AttributeError):
        return None
    call.argtypes = (ctypes.c_int, *arguments)
    call.restype = ctypes.c_int
    return call


def check_room(path: Path, need_bytes: int) -> None:
    """Raises BankFullError before a write that can't fit."""
    free = shutil.disk_usage(path).free
    if free < need_bytes + _RESERVE_BYTES:
        raise BankFullError(
            f"The disk of {path} has {free >> 10:,} KiB left and the write needs {(need_bytes >> 10) + 1:,} "
            "KiB beside a small reserve; nothing was written. Free some room and try again."
        )


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns what the disk and SQLite say into the bank's errors. Their own text may hold words: it goes."""
    try:
        yield
    except OSError as error:
        raised = _of_os_error(path, error)
        if raised is None:
            raise
        raise raised from error
    except DBAPIError as error:
        raised = _of_database_error(path, error)
        raise raised from None
    except NoResultFound:
        raise BankUnreadableError(
            f"A database of {path} lacks a row that it always has. Run `mnemos bank verify`."
        ) from None


def _of_os_error(path: Path, error: OSError) -> Exception | None:
    if error.errno in _FULL:
        return BankFullError(
            f"The disk of {path} is full; nothing of this write was kept. Free some room and try again."
        )
    if error.errno in _READ_ONLY:
        return BankReadOnlyError(
            f"{path} can't be written ({os.strerror(error.errno or 0)}). Make it writable, or open the bank "
            "read-only."
        )
    if error.errno == errno.EIO:
        return BankUnreadableError(
            f"The disk of {path} reports an input/output error. Check the disk, then restore a copy."
        )
    return None


def _of_database_error(path: Path, error: DBAPIError) -> Exception:
    said = str(error.orig).lower()
    if "full" in said:
        return BankFullError(
            f"The disk of {path} is full; nothing of this write was kept. Free some room and try again."
        )
    if "readonly" in said or "read-only" in said:
        return BankReadOnlyError(f"{path} can't be written. Make it writable, or open the bank read-only.")
    if "locked" in said or "busy" in said:
        return BankLockedError(f"A database of {path} is in use by another process. Try again in a moment.")
    may_lack_room = "disk i/o error" in said or "unable to open" in said
    if may_lack_room and shutil.disk_usage(path).free < _RESERVE_BYTES:
        return BankFullError(
            f"The disk of {path} is full; nothing of this write was kept. Free some room and try again."
        )
    kind = type(error.orig).__name__
    return BankUnreadableError(f"A database of {path} could not be used ({kind}). Run `mnemos bank verify`.")
