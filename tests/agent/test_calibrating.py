"""A whole calibration, of a small random model on conversations made here."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from tests.memory.conftest import tiny_model

from mnemos.agent import calibrating
from mnemos.agent.calibrating_reading import ReadingCases, choose_reading
from mnemos.agent.evaluate_reading import Case
from mnemos.attention.calibration import Calibration, ReadingTemperature
from mnemos.attention.calibration_file import calibration_beside, read_calibration, write_calibration
from mnemos.attention.models import LanguageModel
from mnemos.attention.msa_config import MsaConfig
from mnemos.errors import ModelError, UsageError
from mnemos.memory.calibrating_data import Piece
from mnemos.memory.conversations import Conversation

__all__ = ["tiny_model"]
NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eve", "Finn")
THINGS = ("kettle", "quince", "ladder", "violin", "lamp", "kite", "boat", "clock", "scarf", "drum")


def talk(seed: int, turns: int = 8) -> dict[str, object]:
    chance = random.Random(seed)
    who, what = chance.sample(NAMES, 3), chance.sample(THINGS, turns)
    memories = [
        {"id": f"{seed}.{at}", "speaker": chance.choice(who), "text": f"The {thing} is number {seed}{at}."}
        for at, thing in enumerate(what)
    ]
    questions = [
        {"question": f"Which is the {thing}?", "answer": f"{seed}{at}", "evidence": [f"{seed}.{at}"]}
        for at, thing in enumerate(what[:4])
    ]
    return {"id": str(seed), "memories": memories, "questions": questions}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "talks.jsonl"
    path.write_text("".join(json.dumps(talk(seed)) + "\n" for seed in range(6)))
    return path


@pytest.fixture(scope="module")
def found(tiny_model: LanguageModel, data: Path) -> Calibration:
    return calibrating.run(tiny_model, [data], conversations=6, questions=12)


def test_a_calibration_fits_its_model_and_says_what_it_reached(
    tiny_model: LanguageModel, data: Path, found: Calibration, tmp_path: Path
) -> None:
    found.check_fits(tiny_model.config, tiny_model.fingerprint)
    assert found.calibrated and found.fingerprint == tiny_model.fingerprint
    measured = found.measured
    assert measured is not None and set(measured.data) == {"talks.jsonl"} and not measured.held_out
    assert measured.conversations == {"training": 5, "held_out": 1}
    assert measured.questions["training"] == 12 and measured.questions["held_out"] == 4
    assert measured.memories == {"training": 40, "held_out": 8}
    for router in ("lexical", "before", "calibrated"):
        assert set(measured.recall[router]) == {"talks.jsonl", "mean"}
        assert set(measured.recall[router]["mean"]) == {"1", "5", "10", "20", "mrr"}
    assert measured.unrelated["messages"] == 12
    assert set(measured.reading) == {"1", "4", "8"}  # no conversation has 16 memories
    assert found.reading[-1].memories == 1_000_000
    path = tmp_path / "calibration.json"
    write_calibration(path, found)
    assert read_calibration(path) == found


def test_the_same_again_gives_the_same_file(
    tiny_model: LanguageModel, data: Path, found: Calibration, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    again = calibrating.run(
        tiny_model, [data], conversations=6, questions=12, on_progress=lambda *step: seen.append(step)
    )
    for name, each in (("one", found), ("two", again)):
        write_calibration(tmp_path / name, each)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    done, totals = [step[0] for step in seen], {step[1] for step in seen}
    assert done == sorted(done) and len(totals) == 1 and done[-1] == totals.pop()


def test_nothing_of_the_conversations_is_written(found: Calibration) -> None:
    text = found.model_dump_json()
    assert not any(word in text for word in (*NAMES, *THINGS))


def test_models_that_bring_a_router_are_refused(tiny_model: LanguageModel, data: Path) -> None:
    msa = MsaConfig((1,), 16, 64, "mean", "max", "max", False, "INFONCE")
    pooled = replace(tiny_model, config=replace(tiny_model.config, msa=msa))
    with pytest.raises(ModelError, match="nothing to calibrate"):
        calibrating.run(pooled, [data])


def test_too_little_data_is_refused_before_anything_is_read(
    tiny_model: LanguageModel, tmp_path: Path
) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps(talk(1)) + "\n")
    with pytest.raises(UsageError, match="two are needed"):
        calibrating.run(tiny_model, [path], on_progress=lambda *_: pytest.fail("began"))


def test_what_is_there_now_is_compared_or_complained_of(tiny_model: LanguageModel, tmp_path: Path) -> None:
    weights = tmp_path / "model.gguf"
    weights.touch()
    own = tiny_model.calibration.model_copy(
        update={"fingerprint": tiny_model.fingerprint, "recall_threshold": 4.0}
    )
    write_calibration(calibration_beside(weights), own)
    model, complaint = calibrating.with_current(tiny_model, weights)
    assert model.calibration.recall_threshold == 4.0 and complaint is None
    calibration_beside(weights).write_text("{")
    model, complaint = calibrating.with_current(tiny_model, weights)
    assert model is tiny_model and complaint is not None and "cut off or damaged" in complaint


class Losses:
    """A reader with a known loss: least at the temperature, scale and stride it is made with."""

    def __init__(self, best: dict[int, tuple[float, float, float]]) -> None:
        self._best = best

    def paged_loss(self, case: Case, reading: ReadingTemperature) -> float:
        temperature, scale, stride = self._best[len(case.turns)]
        apart = 2 * abs(reading.temperature - temperature) + abs(reading.mass_scale - scale)
        return 2.0 + apart + abs(reading.stride - stride)


def test_the_reading_that_loses_least_is_chosen() -> None:
    described = talk(1, 10)
    described["memories"] = [{"id": f"1.{at}", "text": f"Number {at}."} for at in range(20)]
    piece = Piece("f", "d", Conversation.model_validate(described))
    cases = ReadingCases.of([piece], 2)
    assert {count: len(some) for count, some in cases.by_count.items()} == {1: 2, 4: 2, 8: 2, 16: 2}
    assert cases.steps == 8
    colder = (0.7, 0.8, 0.0)
    reader = Losses({1: (1.0, 1.0, 0.0), 4: (0.902, 0.902, 0.25), 8: colder, 16: colder})

    def chosen(cases: ReadingCases) -> list[tuple[float, ...]]:
        rows = choose_reading(reader, cases)  # type: ignore[arg-type]
        return [(row.memories, row.temperature, row.mass_scale, row.stride) for row in rows]

    assert chosen(cases) == [(1, 1.0, 1.0, 0.0), (4, 0.9, 0.9, 0.25), (1_000_000, *colder)]
    few = ReadingCases({1: (), 4: cases.by_count[4], 8: (), 16: ()})
    assert chosen(few) == [(1, 1.0, 1.0, 0.0), (1_000_000, 0.9, 0.9, 0.25)]
