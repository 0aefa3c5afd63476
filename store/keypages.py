"""Pages of wrapped data keys: `keys/<namespace>.keys`, one 32-byte random key for each memory.

The file is a row of regions of 36 KiB, each the home of one page of at most 1,024 keys. A page is a row of
chunks, one for each group of memories that was written together:

    first slot (u16) | keys (u16) | nonce (12) | AES-256-GCM of the keys (32 each) + tag (16)

under the page's own random key, with namespace, page and place as associated data. The page key lies in the
catalog, wrapped by the namespace key. To shred keys, what is left of the page is written to a free region
under a fresh page key, the catalog's row is moved there, and the old region is zeroed: the shredded keys are
then under a key that no longer exists anywhere.
"""

import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mnemos.errors import BankUnreadableError
from mnemos.store.crypto import KEY_BYTES, NONCE_BYTES, TAG_BYTES, Box, InvalidTag, new_key
from mnemos.store.disk import fsync_dir, read_exactly, write_all, zero, zero_and_unlink

PAGE_KEYS = 1024
REGION_BYTES = 36 << 10
_CHUNK = struct.Struct("<HH")
_CHUNK_OVERHEAD = _CHUNK.size + NONCE_BYTES + TAG_BYTES
_SHREDDED = bytes(KEY_BYTES)
_CACHED_PAGES = 1024  # 32 KiB each: a query of a large bank reads keys of a few hundred


@dataclass(frozen=True, slots=True)
class PageRow:
    """What the catalog holds of one page."""

    id: int
    region: int
    used: int  # slots given out
    length: int  # bytes of its chunks
    wrapped: bytes  # the page key under the namespace key


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in a page, and the data key that lies there."""

    page_id: int
    number: int
    key: bytes


class KeyPages:
    """The data keys of one namespace."""

    def __init__(self, path: Path, namespace_id: str, wrap_key: bytes, read_only: bool) -> None:
        self.path = path
        self._namespace = namespace_id.encode("ascii")
        self._box = Box(wrap_key)
        self._read_only = read_only
        self._fd_or_none: int | None = None
        self._lock = threading.RLock()
        self._cache: OrderedDict[int, tuple[PageRow, bytes]] = OrderedDict()

    def key(self, row: PageRow, slot: int) -> bytes | None:
        """The data key of a slot; None when it was shredded. Raises BankUnreadableError on damage."""
        with self._lock:
            key = self._held(row)[slot * KEY_BYTES : (slot + 1) * KEY_BYTES]
            if not key:
                raise self._damaged(row)
            return None if key == _SHREDDED else key

    def allocate(self, pages: Sequence[PageRow], count: int) -> tuple[list[Slot], list[PageRow]]:
        """New data keys, which `sync` makes durable, and the page rows for the catalog after that."""
        with self._lock:
            slots: list[Slot] = []
            changed: dict[int, PageRow] = {}
            rows = {row.id: row for row in pages}
            page = max(rows.values(), key=lambda row: row.id, default=None)
            while len(slots) < count:
                if page is None or page.used >= PAGE_KEYS:
                    page = self._new_page(rows)
                take = min(count - len(slots), PAGE_KEYS - page.used)
                keys = [new_key() for _ in range(take)]
                slots += [Slot(page.id, page.used + index, key) for index, key in enumerate(keys)]
                page = self._append(page, keys, rows)
                rows[page.id] = changed[page.id] = page
            if not pages:
                fsync_dir(self.path.parent)  # whoever made the file may have been killed before this
            return slots, list(changed.values())

    def shred(self, pages: Sequence[PageRow], doomed: Mapping[int, Collection[int]]) -> list[PageRow]:
        """Writes the pages that hold doomed slots anew, without them; durable. The old regions still stand:
        once the catalog has the new rows, `clear` them."""
        with self._lock:
            rows = {row.id: row for row in pages}
            moved: list[PageRow] = []
            for page_id, slots in doomed.items():
                keys = list(self._keys(rows[page_id]))
                for slot in slots:
                    if slot < len(keys):
                        keys[slot] = _SHREDDED
                fresh = self._write_page(
                    replace(rows[page_id], region=_free_region(rows, moved), used=len(keys)), keys
                )
                moved.append(fresh)
            self.sync()
            return moved

    def sync(self) -> None:
        """Everything written is on the disk."""
        if self._fd_or_none is not None:
            os.fsync(self._fd_or_none)

    def clear(self, live: Sequence[PageRow]) -> int:
        """Zeroes every region that no live page occupies; durable. Returns how many held something."""
        with self._lock:
            if not self.path.exists():
                return 0
            fd = self._fd()
            occupied = {row.region for row in live}
            regions = -(-os.fstat(fd).st_size // REGION_BYTES)
            cleared = 0
            for region in range(regions):
                if region in occupied:
                    continue
                held = read_exactly(fd, REGION_BYTES, region * REGION_BYTES)
                if held != bytes(len(held)):
                    zero(fd, region * REGION_BYTES, REGION_BYTES)
                    cleared += 1
            if cleared:
                os.fsync(fd)
            self.forget()
            return cleared

    def forget(self) -> None:
        """Drops the keys held in this process's memory."""
        with self._lock:
            self._cache.clear()

    def close(self) -> None:
        with self._lock:
            self._cache.clear()
            if self._fd_or_none is not None:
                os.close(self._fd_or_none)
                self._fd_or_none = None

    def unlink(self) -> None:
        """Zeroes and removes the file."""
        self.close()
        zero_and_unlink(self.path)

    def _new_page(self, rows: dict[int, PageRow]) -> PageRow:
        number = max(rows, default=0) + 1
        wrapped = self._box.seal(new_key(), self._namespace + b"/page/%d" % number)
        page = PageRow(number, _free_region(rows, []), 0, 0, wrapped)
        rows[number] = page
        return page

    def _append(self, page: PageRow, keys: list[bytes], rows: dict[int, PageRow]) -> PageRow:
        """Adds a chunk, or writes the page anew as one chunk when its region is full of small ones."""
        size = _CHUNK_OVERHEAD + KEY_BYTES * len(keys)
        if page.length + size > REGION_BYTES:
            fresh = replace(page, region=_free_region(rows, []), used=page.used + len(keys))
            return self._write_page(fresh, self._keys(page) + keys)
        chunk = self._chunk(page, self._page_key(page), page.used, keys)
        write_all(self._fd(), chunk, page.region * REGION_BYTES + page.length)
        return replace(page, used=page.used + len(keys), length=page.length + size)

    def _write_page(self, page: PageRow, keys: list[bytes]) -> PageRow:
        page_key = new_key()
        wrapped = self._box.seal(page_key, self._namespace + b"/page/%d" % page.id)
        chunk = self._chunk(page, page_key, 0, keys)
        write_all(self._fd(), chunk + bytes(REGION_BYTES - len(chunk)), page.region * REGION_BYTES)
        return replace(page, length=len(chunk), wrapped=wrapped)

    def _chunk(self, page: PageRow, page_key: bytes, first: int, keys: list[bytes]) -> bytes:
        context = self._context(page, first, len(keys))
        return _CHUNK.pack(first, len(keys)) + Box(page_key).seal(b"".join(keys), context)

    def _context(self, page: PageRow, first: int, count: int) -> bytes:
        return self._namespace + b"/page/%d/%d/%d/%d" % (page.id, page.region, first, count)

    def _page_key(self, page: PageRow) -> bytes:
        try:
            return self._box.open(page.wrapped, self._namespace + b"/page/%d" % page.id)
        except InvalidTag:
            raise self._damaged(page) from None

    def _keys(self, page: PageRow) -> list[bytes]:
        held = self._held(page)
        return [held[start : start + KEY_BYTES] for start in range(0, len(held), KEY_BYTES)]

    def _held(self, page: PageRow) -> bytes:
        """The keys of a page, one behind the other: as single objects they would take three times as much."""
        held = self._cache.get(page.id)
        if held is not None and held[0] == page:
            self._cache.move_to_end(page.id)
            return held[1]
        keys = self._read(page)
        self._cache[page.id] = (page, keys)
        self._cache.move_to_end(page.id)
        if len(self._cache) > _CACHED_PAGES:
            self._cache.popitem(last=False)
        return keys

    def _read(self, page: PageRow) -> bytes:
        if page.length == 0:
            return b""
        if self._fd_or_none is None and not self.path.exists():
            raise self._missing()
        data = read_exactly(self._fd(), page.length, page.region * REGION_BYTES)
        box = Box(self._page_key(page))
        keys = b""
        at = 0
        while at < page.length:
            if len(data) - at < _CHUNK_OVERHEAD:
                raise self._damaged(page)
            first, count = _CHUNK.unpack_from(data, at)
            end = at + _CHUNK_OVERHEAD + KEY_BYTES * count
            try:
                body = box.open(data[at + _CHUNK.size : end], self._context(page, first, count))
            except InvalidTag:
                raise self._damaged(page) from None
            if first * KEY_BYTES != len(keys):
                raise self._damaged(page)
            keys += body
            at = end
        return keys

    def _damaged(self, page: PageRow) -> BankUnreadableError:
        return BankUnreadableError(
            f"Key page {page.id} of {self.path.name} is damaged. Restore it from a copy, or run `mnemos "
            "bank verify`."
        )

    def _missing(self) -> BankUnreadableError:
        return BankUnreadableError(
            f"Key file {self.path} is missing: the bank was copied without its keys. Restore it from a "
            "copy, or run `mnemos bank verify --repair`."
        )

    def _fd(self) -> int:
        if self._fd_or_none is None:
            flags = os.O_CLOEXEC | (os.O_RDONLY if self._read_only else os.O_RDWR | os.O_CREAT)
            is_new = not self.path.exists()
            try:
                self._fd_or_none = os.open(self.path, flags, 0o600)
            except FileNotFoundError:
                raise self._missing() from None
            if is_new:
                fsync_dir(self.path.parent)
        return self._fd_or_none


def _free_region(rows: dict[int, PageRow], moved: list[PageRow]) -> int:
    taken = {row.region for row in rows.values()} | {row.region for row in moved}
    region = 0
    while region in taken:
        region += 1
    return region
