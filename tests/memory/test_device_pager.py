"""The pager of a model on a device: pages come from disk, host or device; the forgotten are in none."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from tests.attention.gpu.memories import CONFIG, EXPECTED, PAGE, PAYLOADS

from mnemos import MemoryBank
from mnemos.attention.gpu.host_pool import HostPool
from mnemos.attention.gpu.pool import DevicePool
from mnemos.attention.models import LanguageModel
from mnemos.errors import NotFoundError
from mnemos.memory.device_pager import DevicePager
from mnemos.memory.recall import Recall, Recaller


class Bank:
    """Payloads by id, and how they were asked for."""

    def __init__(self) -> None:
        self.there = dict(PAYLOADS)
        self.asked: list[Sequence[str]] = []

    def read(self, namespace: str, memory_id: str) -> bytes:
        self.asked.append([memory_id])
        if (namespace, memory_id) not in self.there:
            raise NotFoundError(f"no memory {memory_id}")
        return self.there[namespace, memory_id]

    def read_many(self, namespace: str, ids: Sequence[str]) -> Mapping[str, bytes]:
        """Those that are vivid: all but `nine`."""
        self.asked.append(list(ids))
        found = {each: self.there.get((namespace, each)) for each in ids if each != "nine"}
        return {each: payload for each, payload in found.items() if payload is not None}


def pager_of(bank: Bank, pages: int, host_pages: int = 20) -> DevicePager:
    host = HostPool(CONFIG, 4, budget_bytes=host_pages * PAGE)
    pool = DevicePool(CONFIG, 4, budget_bytes=pages * PAGE, device="cpu", host=host)
    return DevicePager(pool, bank.read, bank.read_many)


def test_blocks_come_from_disk_then_host_then_device() -> None:
    bank = Bank()
    pager = pager_of(bank, 6)
    assert list(pager.page_present("a", ["two", "nine", "gone"])) == ["two", "nine"]
    assert bank.asked == [["two", "nine", "gone"], ["nine"], ["gone"]]
    assert pager.page("a", ["long"])[0][0].tokens == 130  # `two` leaves for it
    del bank.asked[:]
    for spans, sizes in zip(pager.page("a", ["two", "nine"]), ((47, 33), (9,)), strict=True):
        assert tuple(span.tokens for span in spans) == sizes
    assert bank.asked == [] and (pager.pool.hits, pager.hits) == (1, 1)
    again = pager.page("a", ["two", "nine"])
    assert (pager.pool.hits, pager.hits) == (3, 1)
    (reads,) = {id(span.reads): span.reads for spans in again for span in spans}.values()
    assert torch.equal(reads.table.pool[:, reads.table.pages[:4].long()], EXPECTED["a", "two"])
    with pytest.raises(NotFoundError, match="no room"):
        pager_of(bank, 2).page("a", ["two"])


def test_it_says_where_what_it_holds_is() -> None:
    pager = pager_of(Bank(), 6)
    assert pager.held("a", ["two", "long"]) == {}
    pager.page_present("a", ["two", "nine"])
    assert pager.held("a", ["two", "nine", "long"]) == {"two": "gpu", "nine": "gpu"}
    pager.page("a", ["long"])  # `two` leaves for it, and stays in host memory
    assert pager.held("a", ["two", "long"]) == {"two": "host", "long": "gpu"}
    assert pager.held_bytes() == {"gpu": pager.pool.bytes, "host": pager.bytes}


def test_pages_are_held_for_as_long_as_a_span_is() -> None:
    pager = pager_of(Bank(), 5)
    spans = pager.page("a", ["two"])
    assert pager.page_present("a", ["long"]) == {}
    del spans
    assert list(pager.page_present("a", ["long"])) == ["long"]


def test_what_is_dropped_is_zeros_in_both_pools() -> None:
    bank = Bank()
    pager = pager_of(bank, 12)
    kept = pager.page("b", ["two"])
    spans = pager.page("a", ["long"])
    del bank.there["a", "long"]
    pager.drop("a", "long")
    assert pager.page_present("a", ["long"]) == {}
    assert not spans[0][0].dense().k.any() and kept[0][0].dense().k.any()
    assert pager.keys() == [("b", "two")]
    pager.drop("b")
    host = pager.pool.host
    assert host is not None and not host.pool.any() and not pager.pool.pool.any()
    del spans, kept
    assert pager.pool.bytes == pager.bytes == 0


@pytest.fixture(scope="module")
def on_device() -> LanguageModel:
    from mnemos.attention.gpu.decoder import DeviceDecoder
    from mnemos.attention.models import load, load_weights

    config, weights, _, _ = load_weights()
    decoder = DeviceDecoder(config, weights, dtype=torch.float32, device="cpu")
    return dataclasses.replace(load(dtype="fp32", device="cpu"), decoder=decoder)


def recalled(recaller: Recaller, query: str) -> Recall:
    words = recaller.model.tokenizer.encode(query)
    context = recaller.new_context(recaller.encoder.prefix.tokens + len(words))
    return recaller.recall(query, context, words, namespace="default")


@pytest.mark.model
def test_a_bank_tells_of_the_device_and_an_erase_elsewhere_reaches_it(
    tmp_path: Path, on_device: LanguageModel
) -> None:
    with MemoryBank.open(tmp_path / "bank") as here:
        fact = here.remember("My sister Clara works as a nurse in Leeds.")
        here.encode_pending(on_device)
        recaller = here.recaller(on_device)
        for _ in range(2):
            assert recalled(recaller, "What does Clara do?").memories
        found = here.stats()
        assert (found.device_hits, found.device_misses, found.disk_reads) == (1, 1, 1)
        assert 0 < found.device_bytes == found.cache_bytes <= found.device_budget_bytes
        first, second = found.last_recalls
        assert (first.disk, first.device, second.disk, second.device) == (1, 0, 0, 1)
        assert second.host == 0
        with MemoryBank.open(tmp_path / "bank") as elsewhere:
            elsewhere.forget(elsewhere.plan_forget(ids=[fact.id]))
        assert recalled(recaller, "What does Clara do?").memories == ()
        found = here.stats()
        assert found.device_bytes == found.cache_bytes == 0
        pool = recaller.device_pool
        assert pool is not None and not pool.pool.any()
        assert pool.host is not None and not pool.host.pool.any()
