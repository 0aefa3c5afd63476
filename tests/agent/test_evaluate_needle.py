from pathlib import Path
from typing import Any

import pytest
from tests.memory.conftest import tiny_model

from mnemos.agent import evaluate_needle
from mnemos.attention.models import LanguageModel
from mnemos.errors import UsageError
from mnemos.memory.needles import DEPTHS, TASKS, VALUES, make_questions

__all__ = ["tiny_model"]


def test_words_find_the_needles_without_a_model() -> None:
    done: list[int] = []
    found = evaluate_needle.run(
        tokens=[30_000, 40_000], model=None, router="lexical", on_progress=lambda at, _: done.append(at)
    )
    assert found["memories"] == {"30000": 300, "40000": 400} and done[-1] == 400
    assert all(share > 0.9 for share in found["recall"].values())
    assert set(found["by_depth"]["30000"]) == {f"{depth:g}" for depth in DEPTHS}
    assert set(found["by_task"]["30000"]) == set(TASKS) and set(found["by_value"]["30000"]) == set(VALUES)
    assert found["questions"] == len(TASKS) * len(VALUES) * len(DEPTHS)
    assert found["encode_tokens_per_s"] is None and found["answers"] == {} and found["model"] is None


def test_too_few_places_for_one_question_lower_its_share() -> None:
    found = evaluate_needle.run(tokens=[30_000], model=None, router="lexical", k=2)
    assert found["by_task"]["30000"]["multi-value"] <= 0.5  # four needles, two places
    assert found["by_task"]["30000"]["single"] > 0.9


def test_a_model_encodes_the_hay_and_answers(
    tiny_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate_needle, "MEMORY_TOKENS", 12)  # a byte is a token here
    monkeypatch.setattr(evaluate_needle, "make_questions", lambda repeats: make_questions(repeats)[::9])
    found = evaluate_needle.run(tokens=[360], model=tiny_model, answers=2, k=4)
    assert found["encode_tokens_per_s"] > 0 and found["route_ms_p95"] >= found["route_ms_p50"] > 0
    assert found["answers"]["360"]["asked"] == 2 and found["model"] == tiny_model.name


def test_a_kept_haystack_is_read_once_and_a_stopped_run_goes_on(
    tiny_model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate_needle, "MEMORY_TOKENS", 12)
    monkeypatch.setattr(evaluate_needle, "_GROUP", 10)
    monkeypatch.setattr(evaluate_needle, "make_questions", lambda repeats: make_questions(repeats)[::9])
    kept, seen = tmp_path / "kept", list[int]()

    def until_stopped(done: int, _total: int) -> None:
        seen.append(done)
        if done == 20:
            raise KeyboardInterrupt

    def found(**more: Any) -> dict[str, Any]:
        return evaluate_needle.run(tokens=[360], model=tiny_model, answers=0, k=4, kept=kept, **more)

    with pytest.raises(KeyboardInterrupt):
        found(on_progress=until_stopped)
    first = found(on_progress=lambda done, _: seen.append(done))
    assert seen == [10, 20, 30], "the 20 that were read are not read again"
    again = found()
    assert again["recall"] == first["recall"] and again["encode_tokens_per_s"] is None
    whole = evaluate_needle.run(tokens=[360], model=tiny_model, answers=0, k=4)
    assert whole["recall"] == first["recall"]
    with pytest.raises(UsageError, match="name another --path"):
        found(repeats=2)


def test_a_haystack_smaller_than_its_needles_is_an_error() -> None:
    with pytest.raises(UsageError, match="take more tokens"):
        evaluate_needle.run(tokens=[1000], model=None, router="lexical")
    with pytest.raises(UsageError, match="lexical"):
        evaluate_needle.run(tokens=[1000], model=None)
