"""Pages of memories in one tensor of fixed size: who has which, who is read, and who leaves."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mnemos.attention.admission import S3Fifo
from mnemos.attention.gpu.free_pages import FreePages, runs_of
from mnemos.attention.gpu.streams import Mark
from mnemos.attention.kernels.page_layout import PageLayout

Key = tuple[str, str]  # namespace, memory id


@dataclass(slots=True, eq=False)
class Entry:
    """The pages of one memory."""

    key: Key
    tokens: tuple[int, ...]  # of each span
    pages: list[int]
    holds: int = 0  # who reads it: it stays
    erased: bool = False  # zeroed and not to be found, though somebody may still hold it
    fences: list[Mark] = field(default_factory=list)  # reads that were let go of and may not be over
    arrival: tuple[Mark, ...] = ()  # by layer, of the copies that bring it


class PageRoom:
    """Memories in `pool [layers, pages, page_bytes]`; a page has one number in all layers.

    What leaves is zeroed first, by `wipe`. Nothing that is held leaves. Not thread-safe.
    """

    def __init__(self, pool: Tensor, wipe: Callable[[Entry], None]) -> None:
        self.pool = pool
        layers, count, page_bytes = pool.shape
        self._page_bytes = layers * page_bytes  # in all layers
        self._wipe = wipe
        self._free = FreePages(count)
        self._entries: dict[Key, Entry] = {}
        self._held: set[Key] = set()
        self._policy: S3Fifo[Key] = S3Fifo(count)
        self.pages = count

    @property
    def budget_bytes(self) -> int:
        return self.pages * self._page_bytes

    @property
    def bytes(self) -> int:
        """Of pages that are taken."""
        return (self.pages - self._free.count) * self._page_bytes

    @property
    def available(self) -> int:
        """Pages that are free or belong to what nobody holds."""
        return self._free.count + sum(len(entry.pages) for entry in self._entries.values() if not entry.holds)

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def get(self, key: Key) -> Entry | None:
        return self._entries.get(key)

    def known(self) -> list[Key]:
        """Keys of what is here, and of what is remembered to have been."""
        return self._policy.known()

    def add(self, key: Key, tokens: tuple[int, ...], pages: int) -> Entry | None:
        """Pages for a new memory, held once; others leave for it. None where too few are available."""
        if pages > self.available:
            return None
        while self._free.count < pages:
            leaving = self._policy.evict(self._held)
            assert leaving is not None
            self._free_of(self._entries.pop(leaving))
        entry = Entry(key, tokens, self._free.take(pages))
        self._entries[key] = entry
        self._policy.add(key, pages)
        self.hold(entry)
        return entry

    def touch(self, entry: Entry) -> None:
        """It was asked for again."""
        self._policy.touch(entry.key)

    def hold(self, entry: Entry) -> None:
        entry.holds += 1
        self._held.add(entry.key)

    def let_go(self, entry: Entry) -> None:
        entry.holds -= 1
        if entry.holds:
            return
        if entry.erased:
            self._free_of(entry)
        else:
            self._held.discard(entry.key)

    def remove(self, entry: Entry) -> None:
        """Zeroes it now; its pages are free once nobody holds them."""
        if entry.erased:
            return
        self._policy.drop(entry.key)
        del self._entries[entry.key]
        self._held.discard(entry.key)
        entry.erased = True
        if entry.holds:
            self._wipe(entry)
        else:
            self._free_of(entry)

    def drop(self, namespace: str | None, memory_id: str | None) -> None:
        """`remove` one memory, a namespace's, or all; they are not remembered either."""
        for key in self.known():
            if namespace in (None, key[0]) and memory_id in (None, key[1]):
                entry = self._entries.get(key)
                if entry is not None:
                    self.remove(entry)
                else:
                    self._policy.drop(key)

    def _free_of(self, entry: Entry) -> None:
        self._wipe(entry)
        self._free.give(entry.pages)


def zero_pages(pool: Tensor, entry: Entry) -> None:
    for first, count in runs_of(entry.pages):
        pool[:, first : first + count].zero_()


def page_tensor(
    layers: int, layout: PageLayout, budget_bytes: int, make: Callable[[tuple[int, int, int]], Tensor]
) -> Tensor:
    """Zeros `[layers, pages, page_bytes]` of at most `budget_bytes`: half of that, and half again, where
    there is less memory, down to no page at all.
    """
    page_bytes = layout.page_bytes
    pages = budget_bytes // (layers * page_bytes)
    while pages:
        try:
            with torch.inference_mode(False):  # they are overwritten in any mode
                return make((layers, pages, page_bytes))
        except RuntimeError:  # out of memory, of the device or of what the host can pin
            pages //= 2
    return torch.zeros((layers, 0, page_bytes), dtype=torch.uint8)
