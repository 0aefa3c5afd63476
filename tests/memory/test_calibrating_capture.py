"""What calibration sees of a question is what a search makes of it, number for number."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mnemos import MemoryBank
from mnemos.attention.calibration import Calibration
from mnemos.attention.models import LanguageModel
from mnemos.errors import ContextOverflowError
from mnemos.memory.calibrating import ways_of
from mnemos.memory.calibrating_capture import Capturer, Probe, heads_of, hidden_layers_of
from mnemos.memory.calibrating_data import Piece
from mnemos.memory.calibrating_fit import Ways, scores_of
from mnemos.memory.conversations import Conversation, Question
from mnemos.memory.evaluate_recall import draft_of
from mnemos.memory.records import RecalledMemory
from mnemos.memory.router import PHRASE_BONUS

TALK = {
    "first": [
        ("Ann", "My sister Clara works as a nurse in Leeds."),
        ("Ben", "The quince tree was planted by my aunt."),
        ("Ann", "She must have loved it."),
        ("Ben", "Monday suits me."),
    ],
    "second": [
        ("Cleo", "The kettle is new and red."),
        ("Dan", "It rained."),
        ("Cleo", "I sold the quince jam."),
    ],
}
ASKED = {
    "first": [
        Question(question="What did Ben say of the quince?", evidence=("first.1",)),
        Question(question="Where does Clara work?", evidence=("first.0",), before="first.2"),
    ],
    "second": [Question(question="Is the kettle red?", evidence=("second.0",))],
}
HEADS = ((0, 1), (1, 0), (1, 3))
WEIGHTS = {"lexical": 0.6, "mass": 1.0, "speaker": 0.5, "neighbours": 0.2, "hidden": 0.4}


def piece(name: str) -> Piece:
    turns = [
        {"id": f"{name}.{at}", "speaker": speaker, "time": "2026-03-01", "text": text}
        for at, (speaker, text) in enumerate(TALK[name])
    ]
    return Piece(
        "f", name, Conversation.model_validate({"id": name, "memories": turns, "questions": ASKED[name]})
    )


@pytest.fixture(scope="module")
def calibrated(tiny_model: LanguageModel) -> LanguageModel:
    """The small model with heads of both layers and a hidden layer."""
    calibration = Calibration.uncalibrated(tiny_model.config).model_copy(
        update={
            "key_heads": HEADS,
            "weights": WEIGHTS,
            "hidden_layer": 1,
            "hidden_centre": tuple([0.25] * tiny_model.config.hidden_size),
        }
    )
    return replace(tiny_model, calibration=calibration)


@pytest.fixture(scope="module")
def probes(calibrated: LanguageModel) -> list[Probe]:
    return Capturer(calibrated).probes([piece("first"), piece("second")])


@pytest.mark.parametrize("number", [0, 1, 2])
def test_scores_are_those_of_a_search(
    tmp_path: Path, calibrated: LanguageModel, probes: list[Probe], number: int
) -> None:
    name, question = [(name, one) for name, some in ASKED.items() for one in some][number]
    pieces = [piece("first"), piece("second")]
    turns = [turn for each in pieces for turn in each.conversation.memories]
    visible = [turn.id for turn in turns]
    with MemoryBank.open(tmp_path / "bank") as bank:
        made = bank.remember_many([draft_of((turn,)) for turn in turns])
        if question.before is not None:
            own = [turn.id for turn in piece(name).conversation.memories]
            later = own[own.index(question.before) :]
            visible = [each for each in visible if each not in later]
            for memory, turn in zip(made, turns, strict=True):
                if turn.id in later:
                    bank.hide(memory.id)
        ids = {memory.id: turn.id for memory, turn in zip(made, turns, strict=True)}
        found: dict[str, RecalledMemory] = {
            ids[each.memory.id]: each for each in bank.search(question.question, limit=20, model=calibrated)
        }
    assert set(found) == set(visible)
    probe = probes[number]
    heads = heads_of(calibrated)
    mass = probe.mass[[heads.index(head) for head in HEADS]].mean(dim=0).log()
    hidden = hidden_layers_of(calibrated).index(1)
    ways = Ways(tuple(heads.index(head) for head in HEADS), WEIGHTS, hidden, torch.full((128,), 0.25))
    fused = scores_of(probe, ways)
    for at, turn_id in enumerate(visible):
        signals = found[turn_id].signals
        assert float(probe.lexical[at]) == pytest.approx(signals["lexical"])
        assert float(probe.speaker[at]) == signals["speaker"]
        assert float(mass[at]) == pytest.approx(signals["mass"], abs=1e-3)
        # Means lie in the bank at half precision.
        beside = PHRASE_BONUS * signals.get("phrase", 0.0)  # not a matter of calibration
        assert float(fused[at]) == pytest.approx(found[turn_id].score - beside, abs=0.02)
    assert [visible[at] for at in probe.gold.nonzero()[:, 0]] == list(question.evidence)


def test_the_unrelated_are_the_memories_of_others(probes: list[Probe]) -> None:
    first, _, second = probes
    for probe, others in ((first, 3), (second, 4)):
        assert probe.unrelated is not None and probe.unrelated.shape == (8, others)
        assert torch.allclose(probe.unrelated.sum(dim=-1), torch.ones(8))
        assert torch.allclose(probe.mass.sum(dim=-1), torch.ones(8))
    assert [probe.fold for probe in probes] == [0, 0, 1]


def test_a_conversation_alone_has_no_unrelated(calibrated: LanguageModel) -> None:
    (probe,) = Capturer(calibrated).probes([piece("second")])
    assert probe.unrelated is None and probe.fold == 0


def test_what_the_model_has_now_can_be_scored(calibrated: LanguageModel) -> None:
    ways = ways_of(calibrated, heads_of(calibrated))
    assert [heads_of(calibrated)[head] for head in ways.heads] == list(HEADS)
    assert ways.hidden is None and "hidden" not in ways.weights


def test_only_layers_that_see_everything_are_tried(calibrated: LanguageModel) -> None:
    config = replace(calibrated.config, layers=6, window=8, sliding_layers=(0, 1, 2, 4, 5))
    safe = Calibration.uncalibrated(config)
    model = replace(calibrated, config=config, calibration=safe)
    assert {layer for layer, _ in safe.key_heads} == {3}
    assert heads_of(model) == [(3, head) for head in range(4)]
    everywhere = replace(model, config=replace(config, sliding_layers=tuple(range(6))))
    assert len(heads_of(everywhere)) == 24
    assert all(0 < layer < 6 for layer in hidden_layers_of(model))
    assert hidden_layers_of(calibrated) == (1,)


def test_a_window_too_short_for_memories_says_so(calibrated: LanguageModel) -> None:
    narrow = replace(calibrated, config=replace(calibrated.config, max_positions=40))
    with pytest.raises(ContextOverflowError, match="longer window"):
        Capturer(narrow)
