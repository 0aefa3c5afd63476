"""Reading is measured on the default model, with a file small enough to know what must come out."""

import json
from pathlib import Path

import pytest
import torch

from mnemos.agent import evaluate_reading
from mnemos.agent.evaluate_reading import make_cases
from mnemos.attention.calibration import ReadingTemperature
from mnemos.attention.models import LanguageModel
from mnemos.errors import UsageError

FACTS = {
    "sister": "My sister Clara works as a nurse in Leeds.",
    "dog": "Our dog is called Biscuit and he is brown.",
    "car": "I drive a small green van for work.",
    "tea": "I always drink black tea with lemon.",
    "late": "My aunt Vera plays the cello.",
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    conversation = {
        "id": "one",
        "memories": [{"id": key, "speaker": "User", "text": text} for key, text in FACTS.items()],
        "questions": [
            {"question": "Where does my sister work?", "answer": "in Leeds", "evidence": ["sister"]},
            {
                "question": "What is our dog called?",
                "answer": "Biscuit",
                "evidence": ["dog"],
                "before": "late",
            },
            {"question": "Who knows?", "answer": "Nobody", "evidence": []},
            {"question": "What does Vera play?", "answer": "cello", "evidence": ["late"], "before": "dog"},
        ],
    }
    path = tmp_path / "facts.jsonl"
    path.write_text(json.dumps(conversation) + "\n", encoding="utf-8")
    return path


def test_cases_hold_gold_and_only_what_existed(data: Path) -> None:
    first, second = make_cases(data, 3, None)
    assert len(first.turns) == len(second.turns) == 3
    assert "sister" in {turn.id for turn in first.turns}
    assert "dog" in {turn.id for turn in second.turns} and "late" not in {turn.id for turn in second.turns}
    order = list(FACTS)
    for case in (first, second):
        places = [order.index(turn.id) for turn in case.turns]
        assert places == sorted(places)
    assert [len(case.turns) for case in make_cases(data, 64, None)] == [5, 4]
    assert len(list(make_cases(data, 2, 1))) == 1


@pytest.mark.model
def test_memories_lower_the_loss_and_paging_keeps_most_of_it(
    data: Path, language_model: LanguageModel
) -> None:
    seen: list[tuple[int, int]] = []
    measured = evaluate_reading.run(
        language_model, data, ks=[1, 3], on_progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (4, 4) and measured["questions"] == {"1": 2, "3": 2}
    loss = measured["loss"]
    for k in ("1", "3"):
        assert loss["text"][k] < loss["none"][k] and loss["paged"][k] < loss["none"][k]
        expected = (loss["none"][k] - loss["paged"][k]) / (loss["none"][k] - loss["text"][k])
        assert measured["gap_recovered"][k] == pytest.approx(expected, abs=0.01)
    assert loss["none"]["1"] == loss["none"]["3"]


@pytest.mark.model
def test_one_memory_at_full_precision_and_plain_reading_is_text(
    data: Path, language_model: LanguageModel
) -> None:
    """One memory behind the prefix at its own places is the very same sequence."""
    plain = ReadingTemperature(memories=64, temperature=1.0, mass_scale=1.0)
    loss = evaluate_reading.run(language_model, data, ks=[1], bits=32, reading=plain)["loss"]
    rounding = 2e-3 if language_model.decoder.dtype is torch.float32 else 2e-2  # bf16
    assert loss["paged"]["1"] == pytest.approx(loss["text"]["1"], abs=rounding)


def test_a_file_without_answers_says_so(tmp_path: Path) -> None:
    path = tmp_path / "none.jsonl"
    path.write_text('{"memories": [{"id": "a", "text": "b"}]}\n')
    with pytest.raises(UsageError, match="no question"):
        evaluate_reading.run(None, path, ks=[1])  # type: ignore[arg-type]
