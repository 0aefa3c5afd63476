"""Memories that fade under a budget and come back when they are recalled, with a real (small) model."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mnemos import MemoryBank
from mnemos.attention.models import LanguageModel
from mnemos.errors import NotFoundError
from mnemos.memory.recall import Recall

FACTS = [
    f"Fact {n}: the {word} is in room {n}." for n, word in enumerate(("piano", "globe", "cello", "drum"))
]


@pytest.fixture
def bank(tmp_path: Path, tiny_model: LanguageModel) -> Iterator[MemoryBank]:
    with MemoryBank.open(tmp_path / "bank") as opened:
        for fact in FACTS:
            opened.remember(fact)
        opened.encode_pending(tiny_model)
        yield opened


def recalled(bank: MemoryBank, query: str, k: int = 2) -> Recall:
    recaller = bank.recaller()
    context, words = recaller.question(query)
    return recaller.recall(query, context, words, namespace="default", k=k, selective=False)


def fidelities(bank: MemoryBank) -> list[str]:
    return [memory.fidelity for memory in bank.list(newest_first=False)]


def kv_bytes(bank: MemoryBank) -> int:
    return min(bank.store.kv_sizes("default").values())


def test_routing_keys_alone_are_those_of_a_whole_trace(bank: MemoryBank) -> None:
    encoder = bank.recaller().encoder
    memories = [*bank.list(), bank.remember("many words " * 120)]  # several spans, and pieces of them
    for whole, alone in zip(encoder.encode(memories), encoder.encode_faint(memories), strict=True):
        assert alone.route == whole.route and alone.tokens == whole.tokens
        assert alone.kv == b"" and whole.kv


def test_what_does_not_fit_fades_and_is_found_as_before(bank: MemoryBank, tiny_model: LanguageModel) -> None:
    before = bank.search("cello", limit=4)
    size = kv_bytes(bank)
    faded = bank.set_kv_budget(2 * size + size // 2)
    assert len(faded.ids) == 2 and fidelities(bank) == ["faint", "faint", "vivid", "vivid"]
    after = bank.search("cello", limit=4)
    assert [(hit.memory.id, hit.score) for hit in after] == [(hit.memory.id, hit.score) for hit in before]
    assert [memory.id for memory in bank.next_to_fade()] == [m.id for m in bank.list(newest_first=False)][2:]
    bank.remember("Fact 4: the flute is in room 4.")
    bank.encode_pending()
    assert fidelities(bank) == ["faint", "faint", "faint", "vivid", "vivid"]


def test_a_recalled_faint_memory_is_read_as_before_and_vivid_again(bank: MemoryBank) -> None:
    whole = recalled(bank, "Where is the piano?", k=1)
    bank.fade(budget_bytes=0)
    recaller = bank.recaller()
    recaller.pager.drop()
    assert fidelities(bank) == ["faint"] * 4
    again = recalled(bank, "Where is the piano?", k=1)
    assert torch.equal(
        again.spans[0].k, recaller.pager.page("default", [again.memories[0].memory.id])[0][0].k
    )
    assert again.memories[0].memory.id == whole.memories[0].memory.id
    assert fidelities(bank).count("vivid") == 1
    stats = bank.stats()
    assert (stats.revived, stats.vivid, stats.faint) == (1, 1, 3)
    assert stats.revived_bytes > 0 and stats.last_recalls[-1].revived == 1
    recaller.pager.drop()
    assert recalled(bank, "Where is the piano?", k=1).memories[0].memory.id == whole.memories[0].memory.id
    assert bank.stats().last_recalls[-1].disk == 1
    assert bank.verify(deep=True).ok


def test_kv_made_anew_is_the_former_kv(bank: MemoryBank) -> None:
    ids = [memory.id for memory in bank.list()]
    before = bank.store.get_kvs("default", ids)
    bank.fade(budget_bytes=0)
    assert bank.store.get_kvs("default", ids) == {}
    source = bank.recaller().kv_source
    assert {each: source.read("default", each) for each in ids} == before


@pytest.mark.parametrize("budget", [0, 1, 500])
def test_a_budget_smaller_than_one_memory_works(bank: MemoryBank, budget: int) -> None:
    bank.set_kv_budget(budget)
    assert fidelities(bank) == ["faint"] * 4
    found = recalled(bank, "Where is the globe and the drum?", k=2)
    assert len(found.memories) == 2 and found.tokens > 0
    assert fidelities(bank) == ["faint"] * 4  # used, and not kept


def test_reviving_keeps_the_budget_and_what_was_just_revived(bank: MemoryBank) -> None:
    ids = [memory.id for memory in bank.list(newest_first=False)]
    size = kv_bytes(bank)
    bank.set_kv_budget(size + size // 2)
    source = bank.recaller().kv_source
    for each in ids[:2]:
        source.read("default", each)
        assert set(bank.store.kv_sizes("default")) == {each}


def test_a_read_only_bank_recalls_faint_memories_and_writes_nothing(
    tmp_path: Path, bank: MemoryBank, tiny_model: LanguageModel
) -> None:
    bank.fade(budget_bytes=0)
    with MemoryBank.open(bank.path, read_only=True) as reader:
        recaller = reader.recaller(tiny_model)
        context, words = recaller.question("piano")
        found = recaller.recall("piano", context, words, namespace="default", k=2, selective=False)
        assert len(found.memories) == 2
    assert fidelities(bank) == ["faint"] * 4


def test_an_erased_faint_memory_is_neither_read_nor_revived(bank: MemoryBank) -> None:
    memory = bank.list()[0]
    bank.fade(budget_bytes=0)
    receipt = bank.forget(bank.plan_forget(ids=[memory.id]))
    assert receipt.forgotten == (memory.id,)
    with pytest.raises(NotFoundError):
        bank.recaller().kv_source.read("default", memory.id)
    assert memory.id not in {each.memory.id for each in recalled(bank, memory.text, k=4).memories}
    assert bank.verify(deep=True).ok


def test_erased_while_it_is_revived_it_is_not_kept(bank: MemoryBank, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = bank.list()[0]
    bank.fade(budget_bytes=0)
    encoder = bank.recaller().encoder
    encode = encoder.encode

    def erase_first(memories: list) -> list:  # type: ignore[type-arg]
        made = encode(memories)
        bank.forget(bank.plan_forget(ids=[memory.id]))
        return made

    monkeypatch.setattr(encoder, "encode", erase_first)
    with pytest.raises(NotFoundError):
        bank.recaller().kv_source.read("default", memory.id)
    assert memory.id not in bank.store.kv_sizes("default")
    assert bank.verify(deep=True).ok


def test_two_threads_may_revive_the_same_memory(bank: MemoryBank) -> None:
    memory = bank.list()[0]
    bank.fade(budget_bytes=0)
    pager = bank.recaller().pager
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(pager.page("default", [memory.id])[0][0].tokens))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and len(set(found)) == 1
    assert set(bank.store.kv_sizes("default")) == {memory.id}
    assert bank.verify(deep=True).ok


def test_an_archive_leaves_faint_traces_out(bank: MemoryBank, tmp_path: Path) -> None:
    bank.fade(budget_bytes=0, namespace="default")
    found = bank.export(tmp_path / "a.mnemos", traces=True)
    assert (found.memories, found.traces) == (4, 0)
