"""Recall where something is out of the ordinary: clocks, lengths, repeats, an erase in the middle of it."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from mnemos.attention.compiled import kernels
from mnemos.attention.models import LanguageModel
from mnemos.errors import NotFoundError
from mnemos.memory.bank import MemoryBank
from mnemos.memory.recall import Recaller
from mnemos.memory.router import RECENT_CANDIDATES, Router
from mnemos.store.records import MemoryDraft, TraceDraft


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[MemoryBank]:
    with MemoryBank.open(tmp_path / "bank") as opened:
        yield opened


def ids_of(recaller: Recaller, question: str, limit: int = 8) -> list[str]:
    found = recaller.search(question, namespace="default", limit=limit)
    return [each.memory.id for each in found]


@pytest.mark.parametrize("skew", [timedelta(days=-9000), timedelta(0), timedelta(days=9000)])
def test_a_clock_that_is_wrong_hides_nothing(
    bank: MemoryBank, tiny_model: LanguageModel, skew: timedelta
) -> None:
    """Memories of the future, or of long ago, are found; what was written last is still the latest."""
    now = datetime.now(UTC)
    drafts = [
        MemoryDraft(text, created_at=now + skew * sign)
        for text, sign in (("the heron stood by the weir", 1), ("a ladder leans on the barn", -1))
    ]
    made = [record.id for record in bank.store.add("default", drafts)]
    recaller = bank.recaller(tiny_model)
    for question in ("where did the heron stand", "what leans on the barn"):
        assert set(ids_of(recaller, question)) == set(made)
    assert list(bank.store.recent_ids("default", 1)) == made[-1:]


def test_a_question_asked_before_all_memories_were_made(bank: MemoryBank, tiny_model: LanguageModel) -> None:
    memory = bank.remember("the heron stood by the weir yesterday")
    recaller = bank.recaller(tiny_model)
    for when in (datetime(1970, 1, 2, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)):
        found = recaller.search("what stood by the weir yesterday", namespace="default", limit=3, now=when)
        assert [each.memory.id for each in found] == [memory.id]


def test_memories_of_one_token_and_of_eight_thousand(bank: MemoryBank, tiny_model: LanguageModel) -> None:
    """A byte is a token of the tiny model."""
    short = bank.remember("a", speaker=None)
    words = " ".join(f"word{number}" for number in range(1020))
    assert len(words) > 8000
    long = bank.remember(f"{words} kingfisher")
    recaller = bank.recaller(tiny_model)
    recaller.encode_pending()
    assert bank.get(long.id).tokens >= 8000
    assert ids_of(recaller, "the kingfisher")[0] == long.id
    context, asked = recaller.question("the kingfisher a")
    recall = recaller.recall("the kingfisher a", context, asked, namespace="default", k=2, selective=False)
    assert {each.memory.id for each in recall.memories} == {short.id, long.id}
    assert all(span.tokens <= recaller.encoder._traces.span_tokens for span in recall.spans)
    assert recall.tokens < 8000  # the spans that the question points at, not all of it


def test_many_identical_memories_take_one_place_and_no_more_time(
    bank: MemoryBank, tiny_model: LanguageModel
) -> None:
    """The trace of one serves all: what is measured is the search, which looks at a bounded number."""
    recaller = bank.recaller(tiny_model)
    only = bank.remember("the same heron stood by the same weir")
    (draft,) = recaller.encoder.encode([only])
    recaller.encode_pending()
    times = {}
    for count in (1000, 4000):
        added = bank.store.add("default", [MemoryDraft(only.text, speaker=only.speaker)] * count)
        bank.store.put_traces(
            "default",
            [TraceDraft(each.id, draft.fingerprint, draft.tokens, b"", draft.route) for each in added],
        )
        assert len(ids_of(recaller, "where did the heron stand")) == 1
        started = time.process_time()
        for _ in range(3):
            ids_of(recaller, "where did the heron stand")
        times[count] = time.process_time() - started
    assert len(recaller.routes.keys()) <= 2 * (RECENT_CANDIDATES + 300)
    assert times[4000] < 3 * times[1000]


def erased_during(
    monkeypatch: pytest.MonkeyPatch, where: str, bank: MemoryBank, plan: Callable[[], Any]
) -> list[Any]:
    """Has another thread erase, just before the named part of a search; what that brought."""
    receipts: list[Any] = []
    real = getattr(Router, where)

    def after_an_erase(self: Router, *arguments: Any, **named: Any) -> Any:
        if not receipts:
            found = real(self, *arguments, **named) if where == "look" else None
            thread = Thread(target=lambda: receipts.append(bank.forget(plan())))
            thread.start()
            thread.join()
            return real(self, *arguments, **named) if where != "look" else found
        return real(self, *arguments, **named)

    monkeypatch.setattr(Router, where, after_an_erase)
    return receipts


@pytest.mark.parametrize("where", ["look", "score"])
def test_what_is_erased_while_it_is_searched_for_is_not_found(
    bank: MemoryBank, tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """An erase between the look and the scores: records that were read are zeros, their words are gone."""
    gone = bank.remember("the heron stood by the weir")
    kept = bank.remember("a ladder leans on the barn")
    recaller = bank.recaller(tiny_model)
    recaller.encode_pending()
    receipts = erased_during(
        monkeypatch, where, bank, lambda: bank.plan_forget(namespace="default", ids=[gone.id])
    )
    assert ids_of(recaller, "where did the heron stand") == [kept.id]
    assert len(receipts) == 1 and receipts[0].forgotten == (gone.id,)
    assert ("default", gone.id) not in recaller.routes.keys()  # noqa: SIM118


def test_a_namespace_that_is_erased_while_it_is_searched(
    bank: MemoryBank, tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in ("the heron stood by the weir", "a ladder leans on the barn"):
        bank.remember(text)
    recaller = bank.recaller(tiny_model)
    recaller.encode_pending()
    receipts = erased_during(
        monkeypatch, "look", bank, lambda: bank.plan_forget(namespace="default", everything=True)
    )
    try:
        found = ids_of(recaller, "where did the heron stand")
    except NotFoundError:
        found = []
    assert found == [] and len(receipts) == 1
    assert not recaller.routes.keys() and not recaller.pager.keys()


@pytest.mark.skipif(kernels() is None, reason="no C compiler here")
def test_an_erase_overwrites_packed_kv_that_is_held(bank: MemoryBank, tiny_model: LanguageModel) -> None:
    memory = bank.remember("the heron stood by the weir")
    other = bank.remember("a ladder leans on the barn")
    recaller = bank.recaller(tiny_model)
    recaller.encode_pending()
    held, kept = recaller.pager.page("default", [memory.id, other.id])
    assert all(span.k.any() and span.v.any() for span in (*held, *kept))
    bank.forget(bank.plan_forget(namespace="default", ids=[memory.id]))
    assert not any(span.k.any() or span.v.any() for span in held)
    assert all(span.k.any() and span.v.any() for span in kept)
