"""Recall on the default model: days that a question names, and the newest statement of a fact."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mnemos import MemoryBank
from mnemos.attention.models import LanguageModel
from mnemos.memory.settling import NEWER
from mnemos.store.records import MemoryDraft

NOW = datetime(2026, 3, 18, 9, 30, tzinfo=UTC)
pytestmark = pytest.mark.model


@pytest.fixture
def bank(tmp_path: Path) -> MemoryBank:
    return MemoryBank.open(tmp_path / "bank")


def test_a_question_about_last_week_finds_what_was_said_then(
    bank: MemoryBank, language_model: LanguageModel
) -> None:
    with bank:
        lunches = ["soup at the harbour", "noodles with Ann", "a pie at the station", "rice and beans"]
        drafts = [
            MemoryDraft(f"For lunch I had {what}.", created_at=NOW - timedelta(days=days))
            for what, days in zip(lunches, (40, 9, 23, 1), strict=True)
        ]
        ids = [memory.id for memory in bank.remember_many(drafts)]

        def best(question: str) -> str:
            found = bank.search(question, model=language_model, now=NOW, limit=2)
            assert found[0].signals["time"] == 1.0
            return found[0].memory.id

        assert best("What did I have for lunch last week?") == ids[1]
        assert best("What did I have for lunch yesterday?") == ids[3]
        assert best("What was my lunch in February?") in (ids[0], ids[2])
        plain = bank.search("What did I have for lunch?", model=language_model, now=NOW, limit=2)
        assert "time" not in plain[0].signals


def test_a_memory_that_speaks_of_a_day_is_found_by_it(
    bank: MemoryBank, language_model: LanguageModel
) -> None:
    with bank:
        told = NOW - timedelta(days=6)  # a Thursday
        drafts = [
            MemoryDraft("Yesterday I saw the dentist.", created_at=told),
            MemoryDraft("I saw the optician.", created_at=told - timedelta(days=30)),
        ]
        dentist, _ = (memory.id for memory in bank.remember_many(drafts))
        found = bank.search("Whom did I see on 11 March 2026?", model=language_model, now=NOW, limit=1)
        assert found[0].memory.id == dentist and found[0].signals["time"] == 1.0


def test_the_newest_statement_of_a_fact_comes_first_and_both_are_shown(
    bank: MemoryBank, language_model: LanguageModel
) -> None:
    with bank:
        drafts = [
            MemoryDraft("My favourite colour is blue.", created_at=NOW - timedelta(days=300)),
            MemoryDraft("My cat sleeps on the oven.", created_at=NOW - timedelta(days=200)),
            MemoryDraft("My favourite colour is green now.", created_at=NOW - timedelta(days=3)),
        ]
        old, _, new = (memory.id for memory in bank.remember_many(drafts))
        found = bank.search("What is my favourite colour?", model=language_model, limit=3)
        assert [each.memory.id for each in found][:2] == [new, old]
        assert [each.rank for each in found] == [1, 2, 3]
        assert found[0].score >= found[1].score and (NEWER in found[0].signals or found[0].score > 0)


def test_what_was_said_twice_takes_one_place(bank: MemoryBank, language_model: LanguageModel) -> None:
    with bank:
        for days in (9, 5, 2):
            bank.remember_many(
                [MemoryDraft("The spare key is under the pot.", created_at=NOW - timedelta(days=days))]
            )
        bank.remember("The pot has a crack.")
        found = bank.search("Where is the spare key?", model=language_model, limit=4)
        assert len(found) == 2 and found[0].memory.created_at == NOW - timedelta(days=2)
