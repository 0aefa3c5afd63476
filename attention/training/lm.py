"""A training run as a person asks for one: data, model and settings, from the beginning or resumed."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from mnemos.attention.patterns.hybrid import HybridModel
from mnemos.attention.training.batches import Source
from mnemos.attention.training.checkpoints import has_checkpoint, latest
from mnemos.attention.training.distributed import Place, joined
from mnemos.attention.training.needle import NeedleTask
from mnemos.attention.training.recall import needle_recall
from mnemos.attention.training.request import (
    NEEDLE,
    LmRequest,
    digests,
    fresh_model,
    needle_sizes,
    pretrained,
    read_notes,
    source_of,
    text_of,
    tokens_of,
)
from mnemos.attention.training.settings import TrainSettings
from mnemos.attention.training.trainer import StepRecord, Trainer
from mnemos.errors import BusyError, UsageError

_LAST = 20  # steps whose mean loss is reported
_RECALL_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class LmReport:
    """How a run went, JSON-able by `asdict`."""

    path: str  # of the newest checkpoint
    step: int
    steps: int
    finished: bool
    loss: float  # nats a token, mean of the last steps
    router: float | None
    recall: float | None  # share of needles, at the full length, in samples never trained on
    rewinds: int
    parameters: int
    layers: list[str]
    tokens: int  # read in this run
    tokens_per_s: float
    seconds: float
    processes: int


def train_lm(
    request: LmRequest,
    settings: TrainSettings,
    folder: Path,
    *,
    threads: int | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> LmReport | None:
    """A new run that keeps its checkpoints in `folder`; None in every process but the first.

    `threads` sets torch's thread count for the whole process.

    Raises:
        UsageError: the folder holds a run already, or what is asked for can't be.
        BusyError: another process trains there.
        ModelError: training went wrong again and again, or a pretrained model can't be used.
    """
    if has_checkpoint(folder):
        raise UsageError(f"{folder} holds a training run already; go on with --resume, or name another place")
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(settings.seed)  # for patterns that draw as they go
    with joined() as place, _locked(folder, place):
        if request.start_from is None:
            source = source_of(request, settings.seed)
            model = fresh_model(request, source, settings.seed)
        else:
            model, source = pretrained(request, settings.seed)
        notes = {"request": asdict(request), "digests": digests(request.data)}
        trainer = _trainer(request, settings, folder, place, model, source, notes)
        return _train(trainer, request, on_step, should_stop)


def resume_lm(
    folder: Path,
    *,
    threads: int | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> LmReport | None:
    """Goes on with the run in `folder`, as if it had never stopped.

    Raises:
        NotFoundError: there is none.
        UsageError: its data is not what it was.
        InvalidWeightsError: its newest checkpoint can't be read.
    """
    checkpoint = latest(folder)
    request, settings = read_notes(checkpoint)
    notes = checkpoint.progress["notes"]
    if notes["digests"] != digests(request.data):
        raise UsageError("the files that this run reads are not what they were; put them back, or train anew")
    if threads is not None:
        torch.set_num_threads(threads)
    with joined() as place, _locked(folder, place):
        model = checkpoint.model()
        source = (
            source_of(request, settings.seed)
            if request.start_from is None
            else text_of(request, settings.seed, *tokens_of(request.start_from))
        )
        trainer = _trainer(request, settings, folder, place, model, source, notes)
        trainer.restore(checkpoint)
        return _train(trainer, request, on_step, should_stop)


def _train(
    trainer: Trainer,
    request: LmRequest,
    on_step: Callable[[StepRecord], None] | None,
    should_stop: Callable[[], bool],
) -> LmReport | None:
    before, settings, model = len(trainer.records), trainer.settings, trainer.model
    finished = trainer.run(on_step=on_step, should_stop=should_stop)
    if not trainer.place.is_first:
        return None
    records = [record for record in trainer.records if record.went_back is None]
    made = trainer.records[before:]
    seconds = sum(record.seconds for record in made)
    recall = None
    if request.task == NEEDLE and finished:
        unseen = NeedleTask(needle_sizes(request), seed=settings.seed, stream=1)
        recall = needle_recall(model, unseen, length=settings.length, samples=_RECALL_SAMPLES)
    routers = [record.router for record in records[-_LAST:] if record.router is not None]
    assert trainer.folder is not None
    return LmReport(
        path=str(latest(trainer.folder).path),
        step=trainer.step,
        steps=settings.steps,
        finished=finished,
        loss=_mean([record.loss for record in records[-_LAST:]]),
        router=_mean(routers) if routers else None,
        recall=recall,
        rewinds=trainer.rewinds,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=list(model.config.layers),
        tokens=sum(record.tokens for record in made),
        tokens_per_s=sum(record.tokens for record in made) / seconds if seconds else 0.0,
        seconds=seconds,
        processes=trainer.place.world,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _trainer(
    request: LmRequest,
    settings: TrainSettings,
    folder: Path,
    place: Place,
    model: HybridModel,
    source: Source,
    notes: dict[str, Any],
) -> Trainer:
    return Trainer(model, source, settings, folder=folder, place=place, sharing=request.sharing, notes=notes)


class _locked:
    """Holds a folder for one run."""

    def __init__(self, folder: Path, place: Place) -> None:
        self._lock = FileLock(folder / ".lock") if place.is_first else None
        self._folder = folder

    def __enter__(self) -> None:
        if self._lock is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise BusyError(f"another process trains in {self._folder}; wait, or name another") from None

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()
