"""The index of a large namespace: a mirror of its shards, whatever is erased, written or broken meanwhile."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnemos.memory import vector_blocks
from mnemos.memory.large_vectors import LargeVectors, ReadShards
from mnemos.memory.quiet_worker import QuietWorker
from mnemos.memory.vector_blocks import VectorBlocks
from mnemos.memory.vectors_held import Codes
from mnemos.store.ids import id_from_bytes, id_to_bytes, new_id

DIMS, BLOCK = 16, 4


def drawn(count: int, seed: int) -> Codes:
    return np.random.default_rng(seed).integers(-100, 100, (count, DIMS)).astype(np.int8)


LISTS = drawn(4, seed=99)
QUERY = drawn(1, seed=98)[0]


class Shards:
    """Shards as a bank has them: replaced under a new name at every change, blocks by the order of making."""

    def __init__(self) -> None:
        self.vectors: dict[str, Codes] = {}  # alive, in the order of their frames
        self.blocks: dict[str, int] = {}
        self.kept: dict[int, tuple[str, list[str]]] = {}
        self.broken: set[str] = set()

    def remember(self) -> str:
        number = len(self.blocks)
        memory_id = id_from_bytes(np.random.default_rng(number).bytes(16))
        self.vectors[memory_id] = drawn(1, seed=number)
        self.blocks[memory_id] = number // BLOCK
        return memory_id

    def save(self, ids: "set[str]") -> None:
        for block in {self.blocks[each] for each in ids if each in self.vectors}:
            name, held = self.kept.get(block, ("", []))
            readable = [] if name in self.broken else held
            fresh = [each for each in ids if each in self.vectors and self.blocks[each] == block]
            self.kept[block] = (new_id(), sorted({*readable, *fresh}))

    def forget(self, memory_id: str) -> None:
        del self.vectors[memory_id]
        block = self.blocks[memory_id]
        if block in self.kept and memory_id in self.kept[block][1]:
            left = [each for each in self.kept[block][1] if each != memory_id]
            if left and self.kept[block][0] not in self.broken:
                self.kept[block] = (new_id(), left)
            else:
                del self.kept[block]

    def new_routes(self, namespace: str, after: int = 0, most: int | None = None) -> tuple[int, list[str]]:
        order = [each for each in self.blocks if self.vectors.get(each) is not None]
        numbers = {each: at + 1 for at, each in enumerate(self.blocks)}
        found = [each for each in order if numbers[each] > after][:most]
        return (numbers[found[-1]] if found and len(found) == most else len(self.blocks)), found

    def vector_blocks(self, namespace: str, form: str, stride: int) -> dict[int, str]:
        return {block: name for block, (name, _) in self.kept.items()}

    def vector_block(self, namespace: str, block: int, name: str) -> bytes | None:
        if block not in self.kept or self.kept[block][0] != name or name in self.broken:
            return None
        return b"".join(id_to_bytes(each) + self.vectors[each].tobytes() for each in self.kept[block][1])


def settle(bank: Shards, large: LargeVectors) -> None:
    """All that is to be done beside the searches."""
    for _ in range(200):
        if shards := large.next_shards():
            large.take(large.read(shards))
        elif large.lacking:
            part = [large.lacking.popleft() for _ in range(min(3, len(large.lacking)))]
            large.add(part, {each: bank.vectors[each] for each in part if each in bank.vectors})
        elif not large.is_walked:
            large.walk(5)
        else:
            return
    raise AssertionError("it never ends")


def product(codes: Codes) -> float:
    return float(codes[0].astype(int) @ QUERY.astype(int))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["remember", "forget", "elsewhere", "save", "break", "lose", "piece", "restart"]),
        st.integers(0, 30),
    ),
    max_size=40,
)


@settings(max_examples=50, deadline=None)
@given(start=st.integers(0, 14), steps=STEPS)
def test_it_holds_what_is_there_whatever_happens_meanwhile(
    start: int, steps: "list[tuple[str, int]]"
) -> None:
    bank = Shards()
    for _ in range(start):
        bank.remember()
    bank.save(set(bank.vectors))
    large = LargeVectors(bank, "n", "form", LISTS)
    read: ReadShards | None = None  # by the thread, not yet given to the index
    for what, number in steps:
        chosen = list(bank.vectors)[number % len(bank.vectors)] if bank.vectors else None
        if what == "remember":
            bank.remember()
        elif what in ("forget", "elsewhere") and chosen is not None:
            bank.forget(chosen)
            if what == "forget":
                large.remove([chosen])
        elif what == "save" and large.tail.unsaved:
            taken = set(large.tail.unsaved)
            bank.save(taken)
            large.tail.unsaved.clear()
            if number % 2:  # while that was being kept, others came
                bank.remember()
                large.walk()
                fresh = [each for each in large.lacking if each in bank.vectors]
                large.add(fresh, {each: bank.vectors[each] for each in fresh})
                large.lacking.clear()
            large.saved(taken)
        elif what in ("break", "lose") and bank.kept:
            block = list(bank.kept)[number % len(bank.kept)]
            if what == "lose":
                del bank.kept[block]
            else:
                bank.broken.add(bank.kept[block][0])
        elif what == "piece":
            if read is not None:
                large.take(read)
            shards = large.next_shards(1 + number % 3)
            read = large.read(shards) if shards else None
        elif what == "restart":
            large.clear()
            large, read = LargeVectors(bank, "n", "form", LISTS), None
        large.refresh()
        large.keep_alive(set(bank.vectors))
        assert large.nearest(QUERY, 50).keys() <= bank.vectors.keys(), "what is erased never appears"
    large.refresh()
    settle(bank, large)
    if bank.broken:  # those that were held when their shard broke stay; what wasn't is read again
        large.clear()
        large = LargeVectors(bank, "n", "form", LISTS)
        settle(bank, large)
    large.refresh()
    best = {each: product(codes) for each, codes in bank.vectors.items()}
    assert large.nearest(QUERY, 50) == best
    held = large.gathered(list(best))
    assert [None if each is None else product(each) for each in held] == [*best.values()]
    assert large.gathered([new_id()]) == [None]
    few = large.nearest(QUERY, 3)
    assert [*few] == sorted(best, key=lambda each: -best[each])[: len(few)] and len(few) == min(3, len(best))


def test_what_is_let_go_of_is_overwritten() -> None:
    blocks = VectorBlocks(LISTS)
    ids = [new_id() for _ in range(40)]
    codes = drawn(40, seed=1)
    blocks.put(
        0, "a", b"".join(id_to_bytes(each) + row.tobytes() for each, row in zip(ids, codes, strict=True))
    )
    assert {each: row.tolist() for each, row in zip(ids, codes, strict=True)} == {
        each: held[0].tolist()
        for each, held in zip(ids, blocks.gathered(ids), strict=True)
        if held is not None
    }
    part = blocks._parts[0]
    lists = part.index.invlists
    blocks.drop([0])
    import faiss

    for home in range(lists.nlist):
        if size := lists.list_size(home) * lists.code_size:
            assert not faiss.rev_swig_ptr(lists.get_codes(home), size).any()
    assert not part.ids.any() and len(blocks) == 0 and blocks.gathered(ids) == [None] * 40


def test_with_fewer_lists_looked_at_it_finds_those_in_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_blocks, "_PROBES", 1)
    blocks = VectorBlocks(LISTS)
    ids = [new_id() for _ in range(40)]
    blocks.put(0, "a", b"".join(id_to_bytes(each) + drawn(1, n).tobytes() for n, each in enumerate(ids)))
    found = blocks.nearest(QUERY, 40)
    assert 0 < len(found) < 40 and found == sorted(found, reverse=True)


def test_quiet_work_ends_at_a_close_and_can_be_woken_again() -> None:
    def pieces() -> Iterator[bool | None]:
        yield from (True, True, None, True, None)
        while True:
            yield False

    given_out = pieces()
    calls: list[int] = []

    def piece() -> bool | None:
        calls.append(1)
        return next(given_out)

    worker = QuietWorker(piece)
    worker.wake()
    worker.wait(10)
    assert len(calls) == 3
    worker.wake()
    worker.wait(10)
    assert len(calls) == 5
    worker.wake()
    worker.close()
    done = len(calls)
    worker.wake()
    worker.wait(0.05)
    assert len(calls) == done, "it stays closed"
