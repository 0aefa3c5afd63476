"""What stands beside a good memory in its session gains by it."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from mnemos import MemoryBank
from mnemos.attention.models import LanguageModel
from mnemos.memory.router import Scored
from mnemos.memory.session_cues import session_signal
from mnemos.store.nearby import Place
from mnemos.store.records import MemoryDraft


def placed(**sessions: str | None) -> dict[str, Place]:
    return {each: Place(each, None, None, None, session) for each, session in sessions.items()}


def test_the_best_of_a_session_counts_for_all_of_it() -> None:
    scores = torch.tensor([1.0, -2.0, 3.0, 0.5, -1.0])
    found = session_signal(scores, list("abcde"), placed(a="x", b="y", c="x", d=None))
    assert found is not None and found.tolist() == [3.0, -2.0, 3.0, 0.5, -1.0]
    assert session_signal(scores, list("abcde"), placed(**dict.fromkeys("abcde", "x"))) is None
    assert session_signal(torch.empty(0), [], {}) is None


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[MemoryBank]:
    with MemoryBank.open(tmp_path / "bank") as opened:
        yield opened


def drafts(texts: list[str], day: int, session: str | None = None) -> list[MemoryDraft]:
    made = datetime(2026, 3, day, 12, tzinfo=UTC)
    return [MemoryDraft(text, created_at=made, session_id=session) for text in texts]


def gains(bank: MemoryBank, query: str, model: LanguageModel) -> dict[str, float]:
    found = bank.search(query, model=model, limit=20)
    return {each.memory.text: each.signals.get("session", 0.0) for each in found}


def test_sessions_and_days_hold_memories_together(bank: MemoryBank, tiny_model: LanguageModel) -> None:
    quince = ["The quince tree bears well.", "It wants water.", "Ladders are in the shed."]
    bank.remember_many(drafts(quince, 1))
    bank.remember_many(drafts(["The tram was late.", "Nobody minded."], 2))
    bank.remember_many(drafts(["Lunch was soup."], 2, session="lunch"))
    found = gains(bank, "How is the quince tree?", tiny_model)
    assert len({found[text] for text in quince}) == 1
    assert found["The tram was late."] == found["Nobody minded."] != found["Lunch was soup."]
    assert found["It wants water."] > found["The tram was late."]
    latent = bank.search("How is the quince tree?", model=tiny_model, limit=20, router="latent")
    assert all("session" not in each.signals for each in latent)
    # Forgetting what it gained by takes the gain away.
    first = next(each.memory for each in latent if each.memory.text == quince[0])
    bank.forget(bank.plan_forget(ids=[first.id]))
    after = gains(bank, "How is the quince tree?", tiny_model)
    assert after["It wants water."] < found["It wants water."]


def test_a_companion_is_not_read_for_its_session_alone(bank: MemoryBank, tiny_model: LanguageModel) -> None:
    def scored(memory_id: str, alone: float, score: float) -> Scored:
        return Scored(memory_id, score, {"lexical": 1.0}, 0.0, (), alone)

    ranked = [scored("a", 4.0, 4.0), scored("c", 3.0, 3.0), scored("b", 1.0, 2.5)]
    assert [each.id for each in bank.recaller(tiny_model)._router.worth_reading(ranked)] == ["a", "c"]
