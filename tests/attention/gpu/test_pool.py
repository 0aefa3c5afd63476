"""The device pool on plain tensors: what is asked for is there, what was erased is zeros, nothing breaks."""

import dataclasses
import threading
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from tests.attention.gpu.memories import (
    CONFIG,
    DIM,
    EXPECTED,
    LAYERS,
    PAGE,
    PAGE_BYTES,
    PAYLOADS,
    DeferredStream,
    pages_of,
    payload_of,
)
from torch import Tensor

from mnemos.attention.gpu import page_room
from mnemos.attention.gpu.copies import LayerCopies
from mnemos.attention.gpu.host_pool import HostPool
from mnemos.attention.gpu.page_room import Key
from mnemos.attention.gpu.pool import DevicePool
from mnemos.attention.kernels.dispatch import split_kv_attention
from mnemos.attention.kernels.memory_table import plan_splits, table_of_payloads
from mnemos.errors import BankUnreadableError, ModelMismatchError


def fetch(keys: Sequence[Key]) -> Mapping[Key, bytes]:
    return {key: PAYLOADS[key] for key in keys if key in PAYLOADS}


def never(keys: Sequence[Key]) -> Mapping[Key, bytes]:
    raise AssertionError(f"{keys} were fetched again")


def names(*wanted: str) -> list[Key]:
    return [("a", name) for name in wanted]


def pool_of(pages: int, host_pages: int | None = None, **options: object) -> DevicePool:
    host = None if host_pages is None else HostPool(CONFIG, 4, budget_bytes=host_pages * PAGE)
    return DevicePool(CONFIG, 4, budget_bytes=pages * PAGE, device="cpu", host=host, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("gather_below", [0, 2 * PAGE_BYTES + 1, 1 << 30])
@pytest.mark.parametrize("host_pages", [None, 0, 3, 40])
def test_attention_is_that_over_the_payloads(host_pages: int | None, gather_below: int) -> None:
    """Bit for bit, whichever pages a memory has this time and whichever way it came."""
    pool = pool_of(12, host_pages, gather_below=gather_below)
    q = torch.randn(1, 4, DIM)
    for wanted in (("two", "one"), ("long", "two"), ("even", "one", "long"), ("nine", "two", "one")):
        with pool.page_in(names(*wanted), fetch) as reads:
            reads.wait(LAYERS - 1)
            assert reads.keys == tuple(names(*wanted))
            plain = table_of_payloads([PAYLOADS[key] for key in reads.keys])
            every = [range(len(reads.table.tokens))]
            for layer in range(LAYERS):
                ours = split_kv_attention(q, reads.table, plan_splits(reads.table, every), layer, 0.125)
                twin = split_kv_attention(q, plain, plan_splits(plain, every), layer, 0.125)
                assert all(torch.equal(*pair) for pair in zip(ours, twin, strict=True))


@pytest.mark.parametrize("host_pages", [None, 2, 40])
def test_layer_0_is_there_before_the_last_one_is_copied(host_pages: int | None) -> None:
    stream = DeferredStream()
    pool = pool_of(12, host_pages, stream=stream)
    with pool.page_in(names("two", "one"), fetch) as reads:
        # What is kept waits for no copy; of what goes through two buffers, two layers are under way.
        sent = 0 if host_pages == 40 else LAYERS - 2
        assert stream.ran <= 1 + sent
        for layer in range(LAYERS):
            reads.wait(layer)
            for index, key in enumerate(reads.keys):
                pages = pages_of(reads, index)
                assert torch.equal(pages[: layer + 1], EXPECTED[key][: layer + 1])
                assert not pages[max(layer + 1, sent) :].any()


def test_a_reader_waits_for_copies_that_another_one_queued() -> None:
    stream = DeferredStream()
    pool = pool_of(12, 40, stream=stream)
    pool.page_in(names("two"), fetch).release()
    with pool.page_in(names("two"), never) as reads:
        reads.wait(1)
        assert torch.equal(pages_of(reads, 0)[:2], EXPECTED["a", "two"][:2])
    assert (pool.hits, pool.misses) == (1, 1)


def test_host_pages_stay_until_they_are_copied() -> None:
    stream = DeferredStream()
    pool = pool_of(12, 5, stream=stream)
    first = pool.page_in(names("long"), fetch)
    second = pool.page_in(names("two"), fetch)
    for reads in (second, first):
        reads.wait(LAYERS - 1)
        assert torch.equal(pages_of(reads, 0), EXPECTED[reads.keys[0]])
        reads.release()
    pool.page_in(names("even"), fetch).release()
    assert pool._host is not None and pool._host.get(("a", "even")) is not None  # there is room again


def test_what_left_the_device_comes_back_from_the_host() -> None:
    pool = pool_of(5, 40)
    pool.page_in(names("long"), fetch).release()
    pool.page_in(names("two"), fetch).release()
    with pool.page_in(names("long"), never) as reads:
        assert torch.equal(pages_of(reads, 0), EXPECTED["a", "long"])


def test_a_request_larger_than_the_pool_is_answered_in_part() -> None:
    pool = pool_of(7)
    with pool.page_in(names("even", "long", "two", "nine", "even"), fetch) as reads:
        assert reads.keys == tuple(names("even", "long"))
        with pool.page_in(names("nine", "even"), fetch) as more:
            assert more.keys == tuple(names("even"))
    with pool.page_in(names("nine", "gone"), fetch) as reads:
        assert reads.keys == tuple(names("nine"))
    with pool_of(0).page_in(names("one"), fetch) as reads:
        assert reads.keys == () and reads.table.tokens == ()
    with pool_of(4).page_in(names("long"), fetch) as reads:
        assert reads.keys == ()


def test_a_device_with_less_memory_than_the_budget_has_a_smaller_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, most = torch.zeros, 3 * PAGE

    def zeros(shape: tuple[int, ...], **options: object) -> Tensor:
        if int(np.prod(shape)) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(shape, **options)  # type: ignore[call-overload,no-any-return]

    monkeypatch.setattr(page_room.torch, "zeros", zeros)
    pool = pool_of(14)
    assert pool.budget_bytes == 3 * PAGE
    with pool.page_in(names("two", "even"), fetch) as reads:
        assert reads.keys == tuple(names("even"))
    most = 0
    pool = pool_of(14, 14)
    assert pool.budget_bytes == 0
    with pool.page_in(names("one"), fetch) as reads:
        assert reads.keys == ()


@pytest.mark.parametrize("host_pages", [None, 40])
@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("arrived", [True, False])
def test_pages_of_the_erased_read_as_zeros(host_pages: int | None, held: bool, arrived: bool) -> None:
    stream = DeferredStream()
    pool = pool_of(12, host_pages, stream=stream)
    reads = pool.page_in([*names("long", "one"), ("b", "one")], fetch)
    if arrived:
        reads.wait(LAYERS - 1)
    if not held:
        reads.release()
    pool.drop("a", "long")
    assert not pages_of(reads, 0).any()
    pool.drop("a")
    assert not pages_of(reads, 1).any()
    assert torch.equal(pages_of(reads, 2), EXPECTED["b", "one"])
    assert pool.keys() == [("b", "one")]
    with pool.page_in(names("long"), lambda keys: {}) as others:
        assert others.keys == ()
    if held:  # nobody else gets those pages yet: this reader would see another one's memory
        taken = set(reads.table.pages.tolist())
        with pool.page_in(names("two", "even"), fetch) as others:
            assert not taken & set(others.table.pages.tolist())
        reads.release()
    pool.drop()
    assert pool.bytes == 0 and not pool.pool.any()
    if pool._host is not None:
        assert pool._host.bytes == 0 and not pool._host.pool.any()
    assert not any(half.any() for half in pool._staging._halves)


def test_what_is_erased_while_it_is_fetched_is_fetched_again() -> None:
    pool = pool_of(12, 40)
    there = dict(PAYLOADS)
    asked = []

    def overtaken(keys: Sequence[Key]) -> Mapping[Key, bytes]:
        found = {key: there[key] for key in keys if key in there}
        asked.append(list(keys))
        if there.pop(("a", "one"), None):
            pool.drop("a", "one")
        return found

    with pool.page_in(names("one", "even"), overtaken) as reads:
        assert reads.keys == tuple(names("even"))
    assert len(asked) == 2 and pool.keys() == names("even")

    def always(keys: Sequence[Key]) -> Mapping[Key, bytes]:
        pool.drop("a", "one")
        return {key: PAYLOADS[key] for key in keys}

    with pool.page_in(names("one"), always) as reads:
        assert reads.keys == ()


def test_payloads_that_do_not_belong_are_refused() -> None:
    pool = pool_of(12)
    good = payload_of("one")
    for bits in (8, 16, 32):
        with pool.page_in(names("one"), lambda keys, bits=bits: {keys[0]: payload_of("one", bits)}) as reads:  # type: ignore[misc]
            assert reads.keys == ()
    for bad in (b"", good[:9], good + b"x", b"XKV1" + good[4:]):
        with pytest.raises(BankUnreadableError, match="verify --deep"):
            pool.page_in(names("one"), lambda keys, bad=bad: {keys[0]: bad})  # type: ignore[misc]
    config = dataclasses.replace(CONFIG, layers=2)
    with pytest.raises(ModelMismatchError):
        DevicePool(config, 4, budget_bytes=PAGE, device="cpu").page_in(names("one"), fetch)
    with pytest.raises(ValueError, match="another model"):
        DevicePool(config, 4, budget_bytes=PAGE, device="cpu", host=HostPool(CONFIG, 4, budget_bytes=PAGE))
    assert pool.bytes == 0


@pytest.mark.parametrize("host_pages", [None, 40])
def test_a_page_in_that_fails_half_way_leaves_nothing(
    host_pages: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = DeferredStream()
    pool = pool_of(12, host_pages, stream=stream)
    pool.page_in(names("even"), fetch).release()
    plain, left = stream.submit, [3]

    def submit(work: object) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        plain(work)  # type: ignore[arg-type]

    monkeypatch.setattr(stream, "submit", submit)
    with pytest.raises(KeyboardInterrupt):
        pool.page_in(names("even", "two"), fetch)
    assert pool.bytes == 2 * PAGE and pool.keys() == names("even")
    with pool.page_in(names("two", "even"), fetch) as reads:
        reads.wait(LAYERS - 1)
        for index, key in enumerate(reads.keys):
            assert torch.equal(pages_of(reads, index), EXPECTED[key])
    pool.drop()
    assert pool.bytes == 0


@pytest.mark.parametrize("host_pages", [None, 40])
def test_what_came_in_inference_mode_is_erased_outside_of_it(host_pages: int | None) -> None:
    with torch.inference_mode():
        pool = pool_of(4, host_pages)
        reads = pool.page_in(names("two"), fetch)
    pool.drop()
    assert not pages_of(reads, 0).any()
    with torch.inference_mode():
        pool.page_in(names("one"), fetch).release()
        pool.drop()


def test_without_memory_for_a_copy_there_is_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_of(12, 40)
    pool.page_in(names("even"), fetch).release()

    def full(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LayerCopies, "prepare", full)
    with pool.page_in(names("two", "even"), fetch) as reads:
        assert reads.keys == tuple(names("even"))
        assert torch.equal(pages_of(reads, 0), EXPECTED["a", "even"])
    assert pool.bytes == 2 * PAGE and pool.keys() == names("even")


def test_releasing_twice_lets_go_once() -> None:
    pool = pool_of(4)
    reads, other = pool.page_in(names("two"), fetch), pool.page_in(names("two"), fetch)
    reads.release()
    reads.release()
    with pool.page_in(names("even"), fetch) as none:
        assert none.keys == ()
    other.release()
    with pool.page_in(names("even"), fetch) as some:
        assert some.keys == tuple(names("even"))


def test_a_reader_may_end_in_the_middle_of_a_request() -> None:
    """As the garbage collector ends those that nobody has any more."""
    pool = pool_of(4)
    reads = pool.page_in(names("two"), fetch)
    with pool._lock:
        reads.release()
        assert pool._room.available == 0
    with pool.page_in(names("even"), fetch) as some:
        assert some.keys == tuple(names("even"))


def test_many_threads_read_what_they_asked_for() -> None:
    pool = pool_of(9, 12)
    wrong: list[str] = []

    def ask(seed: int) -> None:
        random = np.random.default_rng(seed)
        keys = list(PAYLOADS)
        for _ in range(60):
            wanted = [keys[i] for i in random.choice(len(keys), 3, replace=False)]
            if seed == 0 and random.random() < 0.2:
                pool.drop(*wanted[0])
            with pool.page_in(wanted, fetch) as reads:
                for index, key in enumerate(reads.keys):
                    pages = pages_of(reads, index)
                    erased = pages == 0  # perhaps of a part of it so far
                    if not ((pages == EXPECTED[key]) | erased).all():
                        wrong.append(key[1])

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert pool.bytes <= pool.budget_bytes and pool._room.available == pool._room.pages
