"""Training a router on a small random model: what it reads is what a search reads, and what it says holds."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.memory.random_vectors import with_vectors

from mnemos import MemoryBank
from mnemos.attention.calibration_file import read_calibration, write_calibration
from mnemos.attention.contrastive import Options
from mnemos.attention.models import LanguageModel
from mnemos.attention.projection import Projection, standardised
from mnemos.errors import ModelError, UsageError
from mnemos.memory.evaluate_recall import draft_of
from mnemos.memory.training_capture import StateCapturer
from mnemos.memory.training_router import Trained, require_trainable, take_data, train

WORDS = ("kettle", "quince", "ladder", "violin", "lamp", "kite", "boat", "cello")
OPTIONS = Options(dims=16, heads=2, epochs=2, batch=8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "talks.jsonl"
    with path.open("w") as file:
        for number in range(6):
            memories = [
                {"id": f"{number}.{at}", "speaker": "Ann", "text": f"The {word} is number {number}{at}."}
                for at, word in enumerate(WORDS)
            ]
            questions = [
                {"question": f"Which is the {word}?", "evidence": [f"{number}.{at}"]}
                for at, word in enumerate(WORDS[:5])
            ]
            file.write(json.dumps({"id": str(number), "memories": memories, "questions": questions}) + "\n")
    return path


def trained(model: LanguageModel, data: Path, seed: int = 0, filler: tuple[Path, ...] = ()) -> Trained:
    parts = take_data(model, [data], [], conversations=6, questions=40, tokens=4000, seed=seed)
    return train(model, parts, filler=filler, passages=10, options=replace(OPTIONS, seed=seed))


@pytest.fixture(scope="module")
def found(tiny_model: LanguageModel, data: Path) -> Trained:
    return trained(tiny_model, data)


def test_it_says_what_it_was_trained_on_and_what_it_reaches(
    found: Trained, tiny_model: LanguageModel
) -> None:
    assert set(found.recall) == {"lexical", "untrained", "trained", "vector"}
    assert {*found.recall["trained"]} == {"talks.jsonl", "mean"}
    assert found.recall["lexical"]["mean"]["1"] == 1.0, "each question names its word"
    assert all(count >= 5 for count in found.questions.values()) and found.memories["held_out"] >= 8
    assert len(found.epochs) == 3 and 0 <= found.best_epoch <= 2 and found.tokens > 100
    assert found.calibration.fingerprint == tiny_model.fingerprint
    assert found.calibration.vectors is not None and found.calibration.vectors.layer == 1
    assert set(found.worse) <= {"talks.jsonl"}


def test_the_same_seed_gives_the_same_file(
    found: Trained, tiny_model: LanguageModel, data: Path, tmp_path: Path
) -> None:
    again = trained(tiny_model, data)
    assert again.calibration == found.calibration and again.recall == found.recall
    path = tmp_path / "calibration.json"
    write_calibration(path, found.calibration)
    assert read_calibration(path) == found.calibration
    assert trained(tiny_model, data, seed=3).calibration != found.calibration


def test_what_is_measured_is_what_a_search_finds(
    found: Trained, tiny_model: LanguageModel, data: Path, tmp_path: Path
) -> None:
    model = replace(tiny_model, calibration=found.calibration)
    conversation = json.loads(data.read_text().splitlines()[0])
    with MemoryBank.open(tmp_path / "bank") as bank:
        for each in conversation["memories"]:
            bank.remember(each["text"], speaker=each["speaker"])
        hits = bank.search("Which is the violin?", model=model, limit=8)
    assert "vector" in hits[0].signals and len({each.signals["vector"] for each in hits}) > 1
    assert hits[0].memory.text == conversation["memories"][3]["text"]


def test_states_are_those_that_a_trace_and_a_search_project(
    tiny_model: LanguageModel, data: Path, tmp_path: Path
) -> None:
    """The vectors of a bank equal those that training makes of the captured states."""
    model = with_vectors(tiny_model)
    assert model.calibration.vectors is not None
    projection = Projection(model.calibration.vectors, model.config.hidden_size)
    parts = take_data(model, [data], [], conversations=2, questions=8, tokens=4000, seed=0)
    (captured, *_) = StateCapturer(model, 1).captured(parts.training[:1])
    turns = parts.training[0].conversation.memories
    with MemoryBank.open(tmp_path / "bank") as bank:
        made = bank.remember_many([draft_of((turn,)) for turn in turns])
        question = parts.training[0].conversation.questions[0].question
        bank.search(question, model=model)
        records = bank.recaller(model).routes.records("default", [memory.id for memory in made])
        states = bank.recaller(model)._states(question, "default")
        for memory, hidden in zip(made, captured.memories, strict=True):
            stored = records[memory.id].vectors
            assert stored is not None
            assert (stored.int() - projection.memory([hidden.float()]).int()).abs().max() <= 2
        assert states is not None and states.vector is not None
        asked = projection.query(captured.probes[0].query.float())
        assert (states.vector.int() - asked.int()).abs().max() <= 2
        assert torch.isfinite(
            standardised(captured.memories[0].float(), torch.zeros(128), torch.ones(128))
        ).all()


def test_plain_texts_can_be_trained_on_too(tiny_model: LanguageModel, data: Path, tmp_path: Path) -> None:
    filler = tmp_path / "essays.jsonl"
    text = " ".join(
        f"Sentence {number} of this tells something of {WORDS[number % 8]}s." for number in range(60)
    )
    filler.write_text(json.dumps({"title": "t", "text": text}) + "\n")
    more = trained(tiny_model, data, filler=(filler,))
    assert more.questions["trained"] > 25 and more.memories["trained"] > 32


def test_a_model_with_a_router_of_its_own_is_refused(tiny_model: LanguageModel) -> None:
    from mnemos.attention.msa_config import MsaConfig

    config = replace(tiny_model.config, msa=MsaConfig.__new__(MsaConfig))
    with pytest.raises(ModelError, match="language loss"):
        require_trainable(replace(tiny_model, config=config))


def test_too_little_data_is_told(tiny_model: LanguageModel, tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"memories": [{"id": "a", "text": "x"}], "questions": []}) + "\n")
    with pytest.raises(UsageError):
        take_data(tiny_model, [path], [], conversations=4, questions=8, tokens=4000, seed=0)


def test_what_cannot_be_trained_is_told(tiny_model: LanguageModel, data: Path) -> None:
    parts = take_data(tiny_model, [data], [], conversations=6, questions=40, tokens=4000, seed=0)
    with pytest.raises(UsageError, match="wide"):
        train(tiny_model, parts, options=replace(OPTIONS, dims=256))
    with pytest.raises(UsageError, match="add data"):
        train(tiny_model, replace(parts, training=parts.training[:1]), options=OPTIONS)
