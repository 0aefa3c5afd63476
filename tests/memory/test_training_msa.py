"""Training the routers of a small MSA checkpoint: signs stand for letters, which no random router knows."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.conftest import write_scripted_msa

from mnemos import MemoryBank
from mnemos.attention.models import LanguageModel, load, load_weights
from mnemos.attention.tokenizer import Tokenizer
from mnemos.attention.training.msa_fit import MsaOptions
from mnemos.attention.training.msa_reading import MsaReading
from mnemos.attention.training.msa_saving import require_new, save_trained
from mnemos.errors import InvalidWeightsError, UsageError
from mnemos.memory.training_msa import MsaData, TrainedMsa, train_msa

PAIRS = dict(zip("~#$%&*+@", "KQXZJVWB", strict=True))
OPTIONS = MsaOptions(epochs=6, batch=4, hard=7, rate=0.01)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_checkpoint(tmp_path_factory.mktemp("models"))


def made_checkpoint(folder: Path) -> Path:
    """The scripted checkpoint with routers as small as those of a new layer."""
    write_scripted_msa(folder / "whole", {})
    config, weights, _, _ = load_weights(folder / "whole")
    small = {name: 0.02 * each for name, each in MsaReading(config, weights).learnt().items()}
    save_trained(folder / "whole", folder / "msa", small)
    return folder / "msa"


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, draw = tmp_path_factory.mktemp("data") / "talks.jsonl", random.Random(2)
    with path.open("w") as file:
        for number in range(12):
            signs = draw.sample(list(PAIRS), len(PAIRS))
            memories = [{"id": f"{number}.{sign}", "text": PAIRS[sign] * 12} for sign in signs]
            questions = [
                {"question": sign * 3, "answer": "ok", "evidence": [f"{number}.{sign}"]} for sign in signs
            ]
            file.write(json.dumps({"id": str(number), "memories": memories, "questions": questions}) + "\n")
    return path


def trained(
    checkpoint: Path, talks: Path, options: MsaOptions, *, readers: bool = False, conversations: int = 12
) -> TrainedMsa:
    config, weights, source, _ = load_weights(checkpoint)
    data = MsaData(config, Tokenizer(source, vocab_size=config.vocab_size))
    parts = data.parts(
        [talks], [], conversations=conversations, questions=200, tokens=50_000, seed=options.seed
    )
    return train_msa(config, weights, data, parts, options=options, readers=readers)


@pytest.fixture(scope="module")
def found(checkpoint: Path, talks: Path) -> TrainedMsa:
    return trained(checkpoint, talks, OPTIONS)


def test_it_finds_what_the_untrained_router_does_not(found: TrainedMsa) -> None:
    before, after = (found.recall[name]["talks.jsonl"] for name in ("untrained", "trained"))
    assert before["1"] < 0.2 and after["1"] > before["1"] + 0.2
    assert found.worse == () and found.best_epoch > 0
    assert found.questions["held_out"] >= 8 and found.epochs[0].phase == 0
    assert {each.phase for each in found.epochs} >= {0, 1}
    assert len(found.weights) == 4 and all("router_" in name for name in found.weights)


def test_a_bank_read_with_it_is_searched_by_it(found: TrainedMsa, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "trained"
    save_trained(checkpoint, out, found.weights)
    old, new = load(checkpoint, dtype="fp32"), load(out, dtype="fp32")
    assert old.fingerprint != new.fingerprint
    quality = []
    for number, model in enumerate((old, new)):
        with MemoryBank.open(tmp_path / f"bank{number}") as bank:  # one model a bank
            quality.append(sum(reciprocal_ranks(bank, model, name) for name in "ab") / 2)
    # A memory's number for the model follows from its id, and ids are drawn: first places alone are chance.
    assert quality[1] >= quality[0] + 0.08


def reciprocal_ranks(bank: MemoryBank, model: LanguageModel, namespace: str) -> float:
    """The mean over signs, of the rank of each one's letter among all letters."""
    for letter in PAIRS.values():
        bank.remember(letter * 12, namespace=namespace)
    ranks = []
    for sign, letter in PAIRS.items():
        hits = bank.search(sign * 3, model=model, limit=len(PAIRS), namespace=namespace)
        ranks.append(1 + [hit.memory.text[0] for hit in hits].index(letter))
    return sum(1 / rank for rank in ranks) / len(ranks)


def test_the_same_seed_gives_the_same_bytes(checkpoint: Path, talks: Path, tmp_path: Path) -> None:
    short = replace(OPTIONS, epochs=1)
    files = []
    for at, seed in enumerate((0, 0, 1)):
        out = tmp_path / str(at)
        made = trained(checkpoint, talks, replace(short, seed=seed), conversations=6)
        save_trained(checkpoint, out, made.weights)
        files.append((out / "model.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]


def test_readers_learn_in_the_second_phase_alone(checkpoint: Path, talks: Path) -> None:
    made = trained(checkpoint, talks, replace(OPTIONS, epochs=2, hard=2), readers=True, conversations=4)
    phases = {each.phase: each.answer_loss for each in made.epochs}
    assert phases[1] is None and phases[2] is not None and phases[2] > 0
    assert len(made.weights) == 12


def test_saving_is_whole_or_not_at_all(checkpoint: Path, tmp_path: Path) -> None:
    config, weights, _, _ = load_weights(checkpoint)
    same = MsaReading(config, weights).learnt()
    out = tmp_path / "copy"
    require_new(out)
    save_trained(checkpoint, out, same)
    again = dict(load_weights(out)[1].named())
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights.named())
    with pytest.raises(UsageError, match="--out"):
        require_new(out)
    with pytest.raises(UsageError, match="--out"):
        require_new(tmp_path / "none" / "copy")
    with pytest.raises(InvalidWeightsError, match="no tensor"):
        save_trained(checkpoint, tmp_path / "other", {"model.nothing": torch.zeros(1)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"], "nothing half-written stays"
