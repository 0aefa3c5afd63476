from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mnemos.attention.kv import SpanKV
from mnemos.attention.memory_codec import RouteKeys
from mnemos.errors import NotFoundError
from mnemos.memory.pager import Decode, Pager
from mnemos.memory.route_index import RouteIndex

BLOCK_BYTES = 2 * 4 * 64


def pager_of(budget_bytes: int, reads: list[str]) -> Pager:
    def read(namespace: str, memory_id: str) -> bytes:
        reads.append(f"{namespace}/{memory_id}")
        return memory_id.encode()

    def decode(payload: bytes | bytearray) -> list[SpanKV]:
        value = float(payload.decode())
        return [SpanKV(torch.full((1, 1, 1, 64), value), torch.full((1, 1, 1, 64), value))]

    return Pager(read, decode, budget_bytes=budget_bytes)


def test_a_block_is_read_once_while_it_is_held() -> None:
    reads: list[str] = []
    pager = pager_of(10 * BLOCK_BYTES, reads)
    first = pager.page("a", ["1", "2"])
    second = pager.page("a", ["2", "1"])
    assert [float(block[0].k[0, 0, 0, 0]) for block in first] == [1.0, 2.0]
    assert second[0][0] is first[1][0]
    assert reads == ["a/1", "a/2"]
    assert (pager.hits, pager.misses, pager.bytes) == (2, 2, 2 * BLOCK_BYTES)


def test_namespaces_do_not_share_blocks() -> None:
    reads: list[str] = []
    pager = pager_of(10 * BLOCK_BYTES, reads)
    pager.page("a", ["1"])
    pager.page("b", ["1"])
    assert reads == ["a/1", "b/1"]


@pytest.mark.parametrize(
    "drop",
    [lambda p: p.drop("a", "1"), lambda p: p.drop("a"), lambda p: p.drop()],
    ids=["one", "namespace", "all"],
)
def test_what_is_dropped_is_overwritten(drop: Callable[[Pager], None]) -> None:
    pager = pager_of(10 * BLOCK_BYTES, [])
    (block,) = pager.page("a", ["1"])
    drop(pager)
    assert not block[0].k.any()
    assert not block[0].v.any()
    assert pager.bytes == 0


def test_dropping_one_leaves_the_others() -> None:
    pager = pager_of(10 * BLOCK_BYTES, [])
    _, kept = pager.page("a", ["1", "2"])
    pager.drop("a", "1")
    assert kept[0].k.all()
    assert pager.bytes == BLOCK_BYTES


def test_a_block_larger_than_the_budget_is_read_each_time() -> None:
    reads: list[str] = []
    pager = pager_of(BLOCK_BYTES - 1, reads)
    for _ in range(2):
        assert float(pager.page("a", ["7"])[0][0].k[0, 0, 0, 0]) == 7.0
    assert reads == ["a/7", "a/7"]
    assert pager.bytes == 0


@given(st.lists(st.integers(1, 6), max_size=40), st.integers(0, 5))
def test_it_is_never_over_its_budget_and_reads_what_it_does_not_hold(asked: list[int], room: int) -> None:
    reads: list[str] = []
    pager = pager_of(room * BLOCK_BYTES, reads)
    for number in asked:
        before, held = len(reads), pager.bytes
        (block,) = pager.page("a", [str(number)])
        assert float(block[0].v[0, 0, 0, 0]) == number
        assert pager.bytes <= room * BLOCK_BYTES
        assert len(reads) == before or held == pager.bytes or pager.bytes == held + BLOCK_BYTES
    assert pager.hits + pager.misses == len(asked) and pager.misses == len(reads)


def test_several_are_read_at_once_and_what_is_gone_is_left_out() -> None:
    """Blocks that are held are not read; one that the bank does not have goes to the single read."""
    reads: list[str] = []
    at_once: list[list[str]] = []

    def read_many(namespace: str, ids: Sequence[str], decode: Decode) -> dict[str, list[SpanKV]]:
        at_once.append(list(ids))
        return {each: decode(each.encode()) for each in ids if each != "9"}

    def read(namespace: str, memory_id: str) -> bytes:
        reads.append(memory_id)
        raise NotFoundError("gone")

    single = pager_of(10 * BLOCK_BYTES, [])
    pager = Pager(read, single._decode, budget_bytes=10 * BLOCK_BYTES, read_many=read_many)
    found = pager.page_present("a", ["1", "2", "9"])
    assert {key: float(block[0].k[0, 0, 0, 0]) for key, block in found.items()} == {"1": 1.0, "2": 2.0}
    assert (at_once, reads) == ([["1", "2", "9"]], ["9"])
    assert list(pager.page_present("a", ["1", "2"])) == ["1", "2"]
    assert len(at_once) == 1 and pager.hits == 2


def test_what_was_read_with_others_before_a_drop_is_not_held() -> None:
    def read_many(namespace: str, ids: Sequence[str], decode: Decode) -> dict[str, list[SpanKV]]:
        pager.drop(namespace, "1")
        return {each: decode(each.encode()) for each in ids}

    single = pager_of(0, [])
    pager = Pager(single._read, single._decode, read_many=read_many)
    assert len(pager.page("a", ["1", "2"])) == 2
    assert (pager.keys(), pager.bytes) == ([], 0)


def test_what_is_dropped_while_it_is_being_read_is_not_held() -> None:
    """An erase passes by between the read and the moment that the block would be kept."""

    def read(namespace: str, memory_id: str) -> bytes:
        pager.drop(namespace, memory_id)
        return b"x"

    span = SpanKV(torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4))
    pager = Pager(read, lambda payload: [span])
    assert pager.page("default", ["a"]) == [[span]]
    assert (pager.keys(), pager.bytes) == ([], 0)


def test_routing_records_dropped_while_they_are_read_are_not_held() -> None:
    record = RouteKeys(torch.ones(1, 2, 4), (2,), torch.ones(3))

    def read(namespace: str, ids: Sequence[str]) -> dict[str, bytes]:
        index.drop(namespace, "a")
        return dict.fromkeys(ids, b"x")

    index = RouteIndex(read, lambda payload: record)
    assert index.records("default", ["a"]) == {"a": record}
    assert (index.keys(), index.bytes) == ([], 0)


def test_it_says_what_it_holds() -> None:
    pager = pager_of(10 * BLOCK_BYTES, [])
    pager.page("a", ["1", "2"])
    assert pager.held("a", ["2", "3"]) == {"2": "host"} and pager.held("b", ["2"]) == {}
    assert pager.held_bytes() == {"host": 2 * BLOCK_BYTES}
    pager.drop("a", "2")
    assert pager.held("a", ["1", "2"]) == {"1": "host"}
