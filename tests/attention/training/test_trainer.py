"""The loop: the same however often it is cut off, and back again from where it went wrong."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mnemos.attention.patterns.hybrid import HybridModel
from mnemos.attention.training.batches import Sample
from mnemos.attention.training.checkpoints import latest
from mnemos.attention.training.needle import NeedleTask
from mnemos.attention.training.settings import TrainSettings
from mnemos.attention.training.trainer import LOG, Trainer
from mnemos.errors import InvalidWeightsError, ModelError, NotFoundError, UsageError

Make = Callable[..., HybridModel]


def settings(**changes: Any) -> TrainSettings:
    usual = {"steps": 12, "batch": 2, "length": 66, "start_length": 34, "warmup": 3, "save_every": 4}
    return TrainSettings(**{**usual, **changes})


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


@pytest.mark.parametrize("layers", [("window", "msa"), ("lsh", "kmeans")])
def test_a_run_that_is_stopped_and_resumed_is_the_same_to_the_last_bit(
    layers: tuple[str, ...], make_model: Make, task: NeedleTask, tmp_path: Path
) -> None:
    whole = Trainer(make_model(*layers), task, settings(), folder=tmp_path / "whole")
    assert whole.run()

    stopped = Trainer(make_model(*layers), task, settings(), folder=tmp_path / "parts")
    assert not stopped.run(should_stop=lambda: stopped.step == 7)
    torch.randn(5)  # what another program does with the generator meanwhile
    checkpoint = latest(tmp_path / "parts")
    assert checkpoint.path.name == "step-00000007"
    resumed = Trainer(checkpoint.model(), task, settings(), folder=tmp_path / "parts")
    resumed.restore(checkpoint)
    assert resumed.run()

    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    ours, theirs = (latest(tmp_path / name) for name in ("whole", "parts"))
    assert ours.progress == theirs.progress
    assert all(torch.equal(value, theirs.optimiser[name]) for name, value in ours.optimiser.items())
    losses = [[record.loss for record in trainer.records] for trainer in (whole, resumed)]
    assert losses[0] == losses[1] and len(losses[0]) == 12


def test_only_the_newest_checkpoints_are_kept_and_none_is_half_there(
    make_model: Make, task: NeedleTask, tmp_path: Path
) -> None:
    trainer = Trainer(make_model("dense"), task, settings(save_every=2, keep=3), folder=tmp_path)
    trainer.run()
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOG, *(f"step-{n:08}" for n in (8, 10, 12))]
    assert len((tmp_path / LOG).read_text().splitlines()) == 12

    newest = tmp_path / "step-00000012"
    described = json.loads((newest / "training.json").read_text())
    (newest / "training.json").write_text(json.dumps({**described, "version": 99}))
    with pytest.raises(InvalidWeightsError, match="version 99"):
        latest(tmp_path)
    (newest / "training.json").write_text(json.dumps(described))
    moments = (newest / "optimiser.safetensors").read_bytes()
    (newest / "optimiser.safetensors").write_bytes(moments[: len(moments) // 2])
    with pytest.raises(InvalidWeightsError, match="optimiser"):
        latest(tmp_path)
    with pytest.raises(NotFoundError):
        latest(tmp_path / "nowhere")


class _Poisoned(NeedleTask):
    """The needle task, where some samples have tokens that the model has come to see as infinite."""

    poison: frozenset[int] = frozenset()

    def sample(self, index: int, length: int) -> Sample:
        made = super().sample(index, length)
        if index in self.poison:
            return Sample(
                tuple(torch.zeros_like(document) for document in made.documents),
                made.targets,
                made.asks,
                made.evidence,
            )
        return made


def test_it_goes_back_when_the_loss_is_no_number_and_goes_on_without_those_samples(
    make_model: Make, task: NeedleTask, tmp_path: Path
) -> None:
    """Token 0 is never seen but in the bad samples, and its embedding is not finite."""
    source = _Poisoned(task.sizes, seed=5)
    source.poison = frozenset({12, 13})  # of the seventh step
    model = make_model("dense")
    with torch.no_grad():
        model.embed.weight[0] = math.inf
    model.head = torch.nn.Linear(16, model.config.vocab, bias=False)
    trainer = Trainer(model, source, settings(snapshot_every=4), folder=tmp_path)
    assert trainer.run()
    bad = [record for record in trainer.records if record.went_back]
    assert [(record.step, record.went_back) for record in bad] == [(6, "the loss is not finite")]
    steps = [record.step for record in trainer.records if not record.went_back]
    assert steps == [0, 1, 2, 3, 4, 5, 4, 5, 6, 7, 8, 9, 10, 11]  # from the state after four steps on
    assert trainer.rewinds == 1 and latest(tmp_path).progress["sample"] == 2 * len(trainer.records)

    source.poison = frozenset(range(1000))
    hopeless = Trainer(model, source, settings(rewinds=2))
    with pytest.raises(ModelError, match="went wrong 3 times"):
        hopeless.run()


def test_it_goes_back_when_the_loss_jumps(make_model: Make, task: NeedleTask) -> None:
    model = make_model("window", "msa")
    trainer = Trainer(
        model, task, settings(steps=40, start_length=None, snapshot_every=10, learning_rate=3e-3)
    )
    trainer.run(until=30)
    good = weights(trainer)
    with torch.no_grad():
        model.norm.weight.mul_(50)  # as an update gone wrong would leave it
    trainer.run(until=31)
    assert trainer.rewinds == 1 and "jumped" in str(trainer.records[30].went_back)
    # It went back to step 30 and made one step from there.
    assert float((model.norm.weight.detach() - good["norm.weight"]).abs().max()) < 0.01


def test_what_does_not_fit_is_refused(make_model: Make, task: NeedleTask) -> None:
    from mnemos.attention.training.needle import NeedleSizes

    with pytest.raises(UsageError, match="different tokens"):
        Trainer(make_model("dense"), NeedleTask(NeedleSizes(), seed=0), settings())
    with pytest.raises(UsageError, match="at least 18 tokens"):
        Trainer(make_model("dense"), task, settings(length=17, start_length=None)).run()
    with pytest.raises(UsageError, match="documents-per-group"):
        Trainer(make_model("msa"), task, settings(), sharing="documents")
    for wrong in ({"steps": 0}, {"start_length": 99}, {"learning_rate": math.nan}, {"router_share": 2.0}):
        with pytest.raises(UsageError):
            settings(**wrong)


def test_schedules() -> None:
    plan = settings(steps=100, length=80, start_length=10, warmup=10, learning_rate=1.0, router_share=0.3)
    assert [plan.length_at(step) for step in (0, 16, 17, 33, 34, 49, 50, 99)] == [
        10,
        10,
        20,
        20,
        40,
        40,
        80,
        80,
    ]
    assert plan.weights_at(29) == (0.1, 1.0) and plan.weights_at(30) == (1.0, 0.1)
    assert plan.learning_rate_at(0) == pytest.approx(0.1) and plan.learning_rate_at(9) == 1.0
    assert plan.learning_rate_at(100) == pytest.approx(0.1)
    assert TrainSettings.from_json(plan.to_json()) == plan
