"""Queries and banks as they shouldn't be: nothing is lost, nothing crashes, and it ends in time."""

import math
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from tests.memory.random_vectors import with_vectors

from mnemos import MemoryBank
from mnemos.attention.models import LanguageModel
from mnemos.errors import InvalidSelectorError
from mnemos.memory import recall, vector_index
from mnemos.memory.pager import Pager
from mnemos.memory.records import RouterName
from mnemos.memory.router import Router, Scored
from mnemos.store.records import MemoryDraft

ROUTERS: tuple[RouterName, ...] = ("full", "latent", "lexical")


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[MemoryBank]:
    with MemoryBank.open(tmp_path / "bank") as opened:
        yield opened


def texts(bank: MemoryBank, query: str, model: LanguageModel, router: RouterName = "full") -> list[str]:
    return [each.memory.text for each in bank.search(query, model=model, router=router, limit=50)]


def test_a_blank_query_finds_nothing(bank: MemoryBank, tiny_model: LanguageModel) -> None:
    bank.remember("the heron stood by the weir")
    for query in ("", " ", "\n\t\u3000 "):
        assert [texts(bank, query, tiny_model, router) for router in ROUTERS] == [[], [], []]
        with pytest.raises(InvalidSelectorError, match="word"):
            bank.recaller(tiny_model).like(query, namespace="default")


@pytest.mark.parametrize(
    "query", ["狗", "我的狗叫什么", "ما اسم كلبي؟", "🐶", "x", "?", "\0", "\u200b", "\u202e\U0001d4b3e\u0301"]
)
def test_queries_of_any_script_and_of_one_character(
    bank: MemoryBank, tiny_model: LanguageModel, query: str
) -> None:
    said = ["我的狗叫饼干。", "كلبي اسمه بسكويت", "🐶🍪", "the heron stood by the weir", "a", "?"]
    bank.remember_many([MemoryDraft(each) for each in said])
    for router in ("full", "latent"):
        found = bank.search(query, model=tiny_model, router=router)
        assert {each.memory.text for each in found} == set(said)
        assert all(math.isfinite(value) for each in found for value in (each.score, *each.signals.values()))
    assert set(texts(bank, query, tiny_model, "lexical")) <= set(said)
    assert texts(bank, "كلبي", tiny_model, "lexical") == ["كلبي اسمه بسكويت"]


@pytest.mark.parametrize("piece", ["heron ", "x", "狗", "🐶", " \n", "last week in May 2023, "])
def test_a_query_of_a_hundred_thousand_characters(
    bank: MemoryBank, tiny_model: LanguageModel, piece: str
) -> None:
    bank.remember_many(
        [MemoryDraft("the heron stood by the weir"), MemoryDraft("a ladder leans on the barn")]
    )
    recaller = bank.recaller(tiny_model)
    recaller.encode_pending()
    query = (piece * 100_000)[:99_995] + "weir?"
    _, words = recaller.question(query)
    assert len(words) <= min(tiny_model.config.max_positions // 2, 1024)
    started = time.process_time()
    assert len(texts(bank, query, tiny_model)) == 2
    assert len(texts(bank, query, tiny_model, "lexical")) <= 2
    assert time.process_time() - started < 10.0


def test_of_a_long_query_the_first_tokens_are_read(
    bank: MemoryBank, tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recall, "_READ_TOKENS", 40)  # the tiny model's window is short
    tokens = tiny_model.tokenizer.encode("the heron stood by the weir " * 100)
    assert tiny_model.config.max_positions // 2 > 100 and len(tokens) > 100
    context, words = bank.recaller(tiny_model).question("the heron stood by the weir " * 100)
    assert words == tokens[:40]
    assert context.capacity - context.length == 40


def test_banks_of_one_memory_of_none_and_no_such_namespace(
    bank: MemoryBank, tiny_model: LanguageModel
) -> None:
    for router in ROUTERS:
        assert texts(bank, "heron", tiny_model, router) == []
    bank.remember("the heron stood by the weir")
    for router in ROUTERS:
        assert texts(bank, "where is the heron", tiny_model, router) == ["the heron stood by the weir"]
        assert list(bank.search("heron", namespace="none", model=tiny_model, router=router)) == []
    assert bank.list("none") == [] and bank.namespaces() == ["default"]
    recaller = bank.recaller(tiny_model)
    context, words = recaller.question("heron")
    assert recaller.recall("heron", context, words, namespace="none").memories == ()


def test_moments_beyond_the_calendar_of_some_time_zones(bank: MemoryBank, tiny_model: LanguageModel) -> None:
    """One of them must not keep the others from being listed or found."""
    east, west = timezone(timedelta(hours=14)), timezone(timedelta(hours=-12))
    moments = [
        datetime.min, datetime.max, datetime(1, 1, 1, tzinfo=east), datetime(9999, 12, 31, 23, tzinfo=west),
        datetime(1, 1, 1, tzinfo=UTC), datetime(1969, 7, 20, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC),
    ]  # fmt: skip
    for number, moment in enumerate(moments):
        made = bank.remember(f"heron {number}", created_at=moment)
        for zone in (east, west):
            assert abs(made.created_at.astimezone(zone).year - moment.year) <= 1
    assert len(bank.list()) == len(moments)
    for now in (None, *moments):
        for query in ("heron yesterday", "heron on 0001-01-01", "heron on 9999-12-31", "heron 999 years ago"):
            found = bank.search(query, model=tiny_model, limit=20, now=now)
            assert len(found) == len(moments)


def test_many_identical_memories_by_words_alone(bank: MemoryBank) -> None:
    """Each is a memory of its own here; there are no more than were asked for, and other ones stay found."""
    bank.remember("a ladder leans on the barn")
    bank.remember_many([MemoryDraft("the heron stood by the weir")] * 3000)
    started = time.process_time()
    assert len(bank.search("where did the heron stand", router="lexical", limit=10)) == 10
    (ladder,) = bank.search("which ladder", router="lexical")
    assert ladder.memory.text == "a ladder leans on the barn"
    assert time.process_time() - started < 2.0


def test_repeats_do_not_take_the_places_of_other_memories(
    bank: MemoryBank, tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all of the best say the same, it stands once, and what comes after it is found too."""
    others = {"a ladder leans on the barn", "kettles whistle"}
    bank.remember_many([MemoryDraft(each) for each in others])
    copies = {each.id for each in bank.remember_many([MemoryDraft("the heron stood by the weir")] * 40)}
    real = Router.score

    def copies_first(self: Router, *given: Any, limit: int, **named: Any) -> list[Scored]:
        ranked = real(self, *given, limit=1000, **named)
        return sorted(ranked, key=lambda each: each.id not in copies)[:limit]

    monkeypatch.setattr(Router, "score", copies_first)
    found = [each.memory.text for each in bank.search("heron", model=tiny_model, limit=3)]
    assert found[0] == "the heron stood by the weir" and set(found[1:]) == others
    recaller = bank.recaller(tiny_model)
    context, words = recaller.question("heron")
    recall = recaller.recall("heron", context, words, namespace="default", k=3, selective=False)
    assert {each.memory.text for each in recall.memories} == set(found)


def test_no_budget_holds_a_memory(bank: MemoryBank, tiny_model: LanguageModel) -> None:
    """It is read for the reply all the same, and not kept."""
    memory = bank.remember("the heron stood by the weir")
    recaller = bank.recaller(tiny_model)
    recaller.encode_pending()
    assert isinstance(recaller.pager, Pager)
    recaller.pager = Pager(recaller.pager._read, recaller.pager._decode, budget_bytes=1)
    for _ in range(2):
        context, words = recaller.question("the heron")
        recall = recaller.recall("the heron", context, words, namespace="default", selective=False)
        assert [each.memory.id for each in recall.memories] == [memory.id] and recall.tokens > 0
    assert recaller.pager.bytes == 0 and recaller.pager.misses == 2


@pytest.mark.parametrize("harm", ["folder", "garbage", "cut", "version"])
def test_an_index_that_is_gone_or_damaged_is_made_again(
    tmp_path: Path, tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    """While the bank is open and after: the same is found, and it is whole in the end."""
    monkeypatch.setattr(vector_index, "_SAVE_MEMORIES", 4)
    model, path = with_vectors(tiny_model), tmp_path / "bank"

    def damage() -> None:
        if harm == "folder":
            shutil.rmtree(path / "index")
            return
        for shard in path.rglob("*.shard"):
            data = shard.read_bytes()
            damaged = {"cut": data[:30], "version": data[:4] + b"\x09" + data[5:], "garbage": b"?" * 100}
            shard.write_bytes(damaged[harm])

    def ranked(bank: MemoryBank) -> list[tuple[str, float]]:
        return [(each.memory.id, each.score) for each in bank.search("blue kettle", model=model, limit=20)]

    with MemoryBank.open(path) as bank:
        bank.remember_many([MemoryDraft(f"kettle {number} is blue") for number in range(6)])
        before = ranked(bank)
        assert list(path.rglob("*.shard"))
        damage()
        assert ranked(bank) == before
    with MemoryBank.open(path) as bank:
        assert ranked(bank) == before
        memory = bank.remember("kettle 6 is blue")
        bank.forget(bank.plan_forget(ids=[memory.id]))
        assert ranked(bank) == before
        assert bank.verify(deep=True).ok


def test_everything_is_erased_again_and_again_while_others_search(
    tmp_path: Path, tiny_model: LanguageModel
) -> None:
    """From this opening and from another one: after an erase has returned, nothing of it is found."""
    model, path = with_vectors(tiny_model), tmp_path / "bank"
    erased: set[str] = set()
    errors: list[BaseException] = []
    stop, searched = Event(), [0]

    def search(bank: MemoryBank) -> None:
        try:
            while not stop.is_set():
                gone = set(erased)  # before the search begins
                found = {each.memory.id for each in bank.search("where is the heron", model=model)}
                assert not found & gone
                searched[0] += 1
        except BaseException as error:
            errors.append(error)

    with MemoryBank.open(path) as bank, MemoryBank.open(path) as other:
        bank.recaller(model)
        threads = [Thread(target=search, args=(each,)) for each in (bank, other)]
        for thread in threads:
            thread.start()
        for turn in range(6):
            drafts = [MemoryDraft(f"heron {turn} {number} stood by the weir") for number in range(4)]
            ids = {memory.id for memory in bank.remember_many(drafts)}
            want = searched[0] + 2
            while searched[0] < want and not errors:
                time.sleep(0.01)
            bank.forget(bank.plan_forget(everything=True))
            erased |= ids
        stop.set()
        for thread in threads:
            thread.join()
        assert not errors, errors[0]
        for each in (bank, other):
            assert list(each.search("where is the heron", model=model)) == []
            recaller = each.recaller(model)
            assert not recaller.routes.keys() and not recaller.pager.keys()
            assert recaller.vectors is not None and len(recaller.vectors.catch_up("default")) == 0
        assert bank.verify(deep=True).ok
