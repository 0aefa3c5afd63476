"""The pool under any order of requests, releases, erases and forgetting, against a model in plain dicts."""

from collections.abc import Mapping, Sequence

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.attention.gpu.memories import (
    CONFIG,
    EXPECTED,
    LAYERS,
    PAGE,
    PAGE_BYTES,
    PAGES,
    PAYLOADS,
    DeferredStream,
    pages_of,
)

from mnemos.attention.gpu.device_reads import DeviceReads
from mnemos.attention.gpu.host_pool import HostPool
from mnemos.attention.gpu.page_room import Key
from mnemos.attention.gpu.pool import DevicePool

KEYS = st.sampled_from(sorted(PAYLOADS))
REQUESTS = st.lists(KEYS, max_size=6)


class PoolMachine(RuleBasedStateMachine):
    """What each reader holds is known here; the pool decides alone what of the rest stays."""

    deferred = False

    def __init__(self) -> None:
        super().__init__()
        self.stream = DeferredStream() if self.deferred else None
        self.host = HostPool(CONFIG, 4, budget_bytes=7 * PAGE)
        self.pool = DevicePool(
            CONFIG,
            4,
            budget_bytes=11 * PAGE,
            device="cpu",
            host=self.host,
            stream=self.stream,
            gather_below=2 * PAGE_BYTES,
        )
        self.bank = dict(PAYLOADS)
        self.reads: list[tuple[DeviceReads, set[Key]]] = []  # and what was erased since
        self.given = 0

    def fetch(self, keys: Sequence[Key]) -> Mapping[Key, bytes]:
        return {key: self.bank[key] for key in keys if key in self.bank}

    @rule(wanted=REQUESTS)
    def ask(self, wanted: list[Key]) -> None:
        # What an erased reader still has is nobody's, and what another one holds is here already.
        held = {key for reads, erased in self.reads for key in reads.keys if key not in erased}
        ghosts = {page for pages in self.ghosts() for page in pages}
        room = 11 - sum(PAGES[name] for _, name in held) - len(ghosts)
        expected = []
        for key in dict.fromkeys(wanted):
            pages = 0 if key in held else PAGES[key[1]]
            if key in self.bank and pages <= room:
                room -= pages
                expected.append(key)
        reads = self.pool.page_in(wanted, self.fetch)
        assert reads.keys == tuple(expected)
        self.reads.append((reads, set()))
        self.given += len(expected)
        assert self.pool.hits + self.pool.misses == self.given

    @precondition(lambda self: self.reads)
    @rule(data=st.data(), look=st.booleans())
    def release(self, data: st.DataObject, look: bool) -> None:
        index = data.draw(st.integers(0, len(self.reads) - 1))
        reads, erased = self.reads.pop(index)
        if look:
            self.check(reads, erased)
        reads.release()

    def check(self, reads: DeviceReads, erased: set[Key]) -> None:
        reads.wait(LAYERS - 1)
        for index, key in enumerate(reads.keys):
            pages = pages_of(reads, index)
            assert not pages.any() if key in erased else torch.equal(pages, EXPECTED[key])

    @rule(key=KEYS)
    def erase(self, key: Key) -> None:
        self.bank.pop(key, None)
        self.pool.drop(*key)
        self.note({key})

    @rule(namespace=st.sampled_from("ab"))
    def empty_a_namespace(self, namespace: str) -> None:
        gone = {key for key in PAYLOADS if key[0] == namespace}
        self.pool.drop(namespace)
        self.note(gone)

    @rule(key=KEYS)
    def remember_again(self, key: Key) -> None:
        self.bank[key] = PAYLOADS[key]

    def note(self, gone: set[Key]) -> None:
        assert not gone & set(self.pool.keys())
        for reads, erased in self.reads:
            erased |= gone & set(reads.keys)

    def ghosts(self) -> list[tuple[int, ...]]:
        """Pages of what was erased while it was read."""
        found = set()
        for reads, erased in self.reads:
            for index, key in enumerate(reads.keys):
                if key in erased:
                    found.add(tuple(self.places(reads, index)))
        return list(found)

    def places(self, reads: DeviceReads, index: int) -> list[int]:
        first = sum(PAGES[name] for _, name in reads.keys[:index])
        return reads.table.pages.tolist()[first : first + PAGES[reads.keys[index][1]]]  # type: ignore[no-any-return]

    @invariant()
    def readers_see_their_memories_and_zeros_for_the_erased(self) -> None:
        for reads, erased in self.reads:
            self.check(reads, erased)

    @invariant()
    def no_page_has_two_owners(self) -> None:
        owner: dict[int, object] = {}
        for reads, erased in self.reads:
            for index, key in enumerate(reads.keys):
                pages = self.places(reads, index)
                whose = ("erased", *pages) if key in erased else key
                assert all(owner.setdefault(page, whose) == whose for page in pages)
        assert self.pool.bytes <= self.pool.budget_bytes

    @invariant()
    def what_nobody_has_is_zeros(self) -> None:
        for room in (self.pool._room, self.host):
            taken = [page for entry in room._entries.values() for page in entry.pages]
            assert len(taken) == len(set(taken))
            free = sorted(set(range(room.pages)) - set(taken))
            assert not room.pool[:, free].any()
            assert not set(room._entries) - set(self.bank)

    @invariant()
    def the_host_pool_holds_what_it_says(self) -> None:
        for key, entry in self.host._entries.items():
            assert torch.equal(self.host.pool[:, entry.pages], EXPECTED[key])


class DeferredPoolMachine(PoolMachine):
    """The same with copies that are done as late as a device may do them."""

    deferred = True

    @invariant()
    def readers_see_their_memories_and_zeros_for_the_erased(self) -> None:  # each only when it looks
        pass

    @invariant()
    def what_nobody_has_is_zeros(self) -> None:
        pass

    @invariant()
    def the_host_pool_holds_what_it_says(self) -> None:
        pass


PoolMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
DeferredPoolMachine.TestCase.settings = PoolMachine.TestCase.settings
TestPool = PoolMachine.TestCase
TestDeferredPool = DeferredPoolMachine.TestCase
