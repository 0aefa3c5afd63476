"""Mass over blocks against the mass of all in one; `like` with the default model."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mnemos import MemoryBank
from mnemos.attention.calibration import Calibration, ReadingTemperature
from mnemos.attention.memory_codec import RouteKeys
from mnemos.attention.models import LanguageModel
from mnemos.attention.routing import RouteQuery, record_mass, span_mass
from mnemos.errors import InvalidSelectorError
from mnemos.memory.likeness import log_mass
from mnemos.store.selectors import Like, Matching

FACTS = (
    "My sister Clara works as a nurse in Leeds.",
    "My dog is called Biscuit.",
    "I am allergic to peanuts.",
    "I play the cello in an amateur orchestra.",
    "My brother Tom lives in Oslo.",
    "The bus was late again this morning.",
)


@pytest.mark.parametrize("block", [1, 2, 5, 17])
def test_mass_by_blocks_is_the_mass_of_all(block: int) -> None:
    torch.manual_seed(3)
    heads = ((3, 0), (3, 1), (4, 2))
    calibration = Calibration(
        key_heads=heads, weights={}, reading=(ReadingTemperature(memories=1, temperature=1, mass_scale=1),)
    )
    query = RouteQuery(torch.randn(3, 5, 8) * 3, None)
    records = []
    for tokens in (1, 4, 63, 2, 7, 1, 31, 5, 3, 11, 1, 2, 13, 1, 1, 9, 6):
        spans = (tokens,) if tokens < 3 else (2, tokens - 2)
        records.append(RouteKeys(torch.randn(2, tokens, 8) * 3, spans, torch.zeros(0)))
    whole = record_mass(span_mass(query, records, calibration, 2), records)
    blocks = [records[at : at + block] for at in range(0, len(records), block)]
    assert torch.allclose(log_mass(query, [[], *blocks], calibration, 2), whole, atol=1e-4)
    assert log_mass(query, [], calibration, 2).shape == (0,)


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[MemoryBank]:
    with MemoryBank.open(tmp_path / "bank") as opened:
        for fact in FACTS:
            opened.remember(fact)
        yield opened


@pytest.mark.model
def test_like_finds_by_meaning_and_shows_what_it_found(
    bank: MemoryBank, language_model: LanguageModel
) -> None:
    hidden = bank.list(matching="Biscuit")[0]
    bank.hide(hidden.id)
    plan = bank.plan_forget(where='like:"What is my pet called?"@1.2', model=language_model)
    (like,) = plan.likes
    assert [memory.id for memory in plan.selected] == [hidden.id] == [hit.id for hit in like.hits]
    assert (like.threshold, like.scored, like.unscored) == (1.2, len(FACTS), 0)
    assert like.best == like.hits[0].score >= 1.2
    assert type(plan).model_validate_json(plan.model_dump_json()) == plan
    assert bank.plan_forget(where=~Like("What is my pet called?", 1.2)).selected == tuple(
        memory for memory in bank.list(include_hidden=True, newest_first=False) if memory.id != hidden.id
    )
    nothing = bank.plan_forget(where=Like("What is my pet called?") & Matching("Oslo"))
    assert nothing.selected == () and nothing.likes[0].hits == ()
    assert nothing.likes[0].threshold == language_model.calibration.recall_threshold
    assert nothing.likes[0].best == pytest.approx(like.best)
    assert bank.forget(plan).forgotten == (hidden.id,)
    assert len(bank.list(where=Like("pets", -100.0), include_hidden=True)) == len(FACTS) - 1
    with pytest.raises(InvalidSelectorError):
        bank.store.list("default", where=Like("x"))
