"""Listings and surveys that are made piece by piece, against the whole read at once."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mnemos import MemoryBank
from mnemos.memory import listing as listings
from mnemos.memory import survey as surveys
from mnemos.memory.listing import Listing, Sort, listed
from mnemos.memory.survey import Survey
from mnemos.store.records import MemoryDraft
from mnemos.store.words import Filter

COUNT = 700


@pytest.fixture
def bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryBank]:
    monkeypatch.setenv("MNEMOS_KEY_DIR", str(tmp_path / "keys"))
    for module in (listings, surveys):  # pieces smaller than the namespace
        monkeypatch.setattr(module, "_FIRST_ROWS", 90)
        monkeypatch.setattr(module, "_MOST_ROWS", 90)
        monkeypatch.setattr(module, "_FEWEST_ROWS", 90)
    start = datetime(2026, 3, 1, tzinfo=UTC)
    with MemoryBank.open(tmp_path / "bank") as opened:
        drafts = [
            MemoryDraft(
                f"note {at} " + "x" * (at * 37 % 101) + (" Nightingale" if at == 3 else ""),
                kind="document" if at % 3 == 0 else "note",
                created_at=start + timedelta(hours=5 * at),
            )
            for at in range(COUNT)
        ]
        opened.remember_many(drafts)
        yield opened


def texts(memories: list[object]) -> list[str]:
    return [memory.text for memory in memories]  # type: ignore[attr-defined]


@pytest.mark.parametrize("has_gaps", [False, True])
@pytest.mark.parametrize("matching", [None, "9", "xxxx", "nightingale", "nothing of it"])
def test_a_listing_is_what_the_bank_lists(bank: MemoryBank, matching: str | None, has_gaps: bool) -> None:
    if has_gaps:
        bank.forget(bank.plan_forget(matching="note 40"))
    expected = bank.list(matching=matching, include_hidden=True)
    listing = Listing(bank, "default", Filter(matching=matching) if matching else None).finish()
    assert listing.is_complete and listing.count == len(expected)
    pages = [memory for at in range(0, COUNT, 50) for memory in listing.page(50, at)]
    assert pages == expected
    assert listed(Listing(bank, "default", Filter(matching=matching), reverse=True)) == expected[::-1]


def test_pages_are_right_while_it_grows(bank: MemoryBank) -> None:
    bank.forget(bank.plan_forget(matching="note 650"))
    expected = bank.list(include_hidden=True)
    listing = Listing(bank, "default")
    while listing.grow():
        assert listing.count == len(expected) and 0 < listing.share < 1
        assert listing.page(40, 0) == expected[:40]
        assert listing.page(40, 600) == expected[600:640]
    assert listing.page(40, 600) == expected[600:640] and listing.share == 1


def test_a_rare_word_is_shown_before_all_is_searched(bank: MemoryBank) -> None:
    listing = Listing(bank, "default", Filter(matching="nightin"))
    assert listing.grow(), "one piece of several"
    assert listing.count == 1 and [memory.text for memory in listing.page(5, 0) if memory] == [
        "note 3 " + "x" * (111 % 101) + " Nightingale"
    ]
    listing.finish()
    assert listing.count == 1, "it is not counted twice"


def test_orders(bank: MemoryBank) -> None:
    everything = bank.list()
    by_size = listed(Listing(bank, "default", sort="size"))
    sizes = [memory.text_bytes + memory.trace_bytes for memory in by_size]
    assert sizes == sorted(sizes, reverse=True) and len(by_size) == COUNT
    assert listed(Listing(bank, "default", sort="size", reverse=True), 3) == by_size[::-1][:3]
    often, seldom = everything[500], everything[100]
    for turn in range(3):
        exchange = bank.begin_exchange(f"question {turn}", namespace="default", session_id=None)
        found = bank.search(often.text.split("x")[0], router="lexical", limit=1)[0]
        recalled = [found.model_copy(update={"memory": often, "rank": 1})]
        recalled += [found.model_copy(update={"memory": seldom, "rank": 2})] if turn == 0 else []
        bank.complete_exchange(exchange, "answer", recalled=recalled, working=[everything[7]])
    by_uses = listed(Listing(bank, "default", sort="uses"), 3)
    assert by_uses[:2] == [often, seldom]
    uses = Listing(bank, "default").uses([often.id, seldom.id, everything[7].id])
    assert {key: value.count for key, value in uses.items()} == {often.id: 3, seldom.id: 1}
    assert uses[often.id].last >= uses[seldom.id].last
    last = bank.list(limit=1)[0]
    bank.forget(bank.plan_forget(ids=[last.id]))
    assert bank.store.uses("default", [often.id])[often.id].count == 2, "of replies that are there"


def test_a_page_says_what_is_gone(bank: MemoryBank) -> None:
    listing = Listing(bank, "default").finish()
    second = bank.list(limit=2)[1]
    bank.forget(bank.plan_forget(ids=[second.id]))
    assert [memory is None for memory in listing.page(3, 0)] == [False, True, False]


@pytest.mark.parametrize("sort", listings.SORTS)
def test_an_unknown_namespace_holds_nothing(bank: MemoryBank, sort: Sort) -> None:
    assert listed(Listing(bank, "other", sort=sort)) == []
    survey = Survey(bank, "other").finish()
    assert survey.memories == 0 and not survey.days and survey.is_complete


def test_a_survey_adds_up(bank: MemoryBank) -> None:
    bank.forget(bank.plan_forget(matching="note 66"))
    everything = bank.list(include_hidden=True)
    survey = Survey(bank, "default").finish()
    stats = bank.stats("default")
    assert survey.memories == stats.memories == len(everything)
    assert survey.text_bytes == stats.text_bytes and survey.trace_bytes == stats.trace_bytes
    assert survey.fidelities["pending"].memories == stats.pending
    assert survey.kinds["note"].memories == sum(memory.kind == "note" for memory in everything)
    for day, part in survey.days.items():
        start = survey.start_of(day)
        held = bank.list(since=start, until=start + timedelta(days=1))
        assert part.memories == len(held) and part.bytes == sum(memory.text_bytes for memory in held)
        assert sum(each.memories for each in part.kinds.values()) == part.memories
        inside = Listing(
            bank,
            "default",
            Filter(since=start, until=start + timedelta(days=1)),
            within=(part.low, part.high),
        )
        assert listed(inside) == held
    assert list(survey.days) == sorted(survey.days)
