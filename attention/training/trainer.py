"""The loop of a training run: steps, going back when one goes wrong, saving, going on from what was saved.

A run is the same however often it is cut off: all that it depends on is in its checkpoints, and samples
follow from their number alone.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mnemos.attention.patterns.hybrid import HybridModel
from mnemos.attention.training.batches import Batch, Source, make_batch
from mnemos.attention.training.checkpoints import (
    Checkpoint,
    optimiser_tensors,
    random_tensors,
    restore_optimiser,
    restore_random,
    save_checkpoint,
)
from mnemos.attention.training.distributed import Place
from mnemos.attention.training.divergence import DivergenceWatch
from mnemos.attention.training.objective import Objective, Sharing, Weights, objective
from mnemos.attention.training.settings import TrainSettings
from mnemos.errors import ModelError, UsageError

LOG = "log.jsonl"


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step as it is shown and logged."""

    step: int
    loss: float  # next token, nats
    router: float | None
    gradient_norm: float  # before clipping
    learning_rate: float
    length: int
    tokens: int
    seconds: float
    went_back: str | None = None  # why the step was not made


@dataclass(slots=True)
class _Good:
    """A state to go back to."""

    step: int
    model: dict[str, Tensor]
    optimiser: dict[str, Tensor]
    watch: list[float]


class Trainer:
    """Trains a model on a source. With several processes each has one, and they do the same steps."""

    def __init__(
        self,
        model: HybridModel,
        source: Source,
        settings: TrainSettings,
        *,
        folder: Path | None = None,
        place: Place | None = None,
        sharing: Sharing = "rows",
        notes: dict[str, Any] | None = None,
    ) -> None:
        """`folder` gets checkpoints and log; nothing is written without it. `notes` are saved with each.

        Raises:
            UsageError: a vocabulary that doesn't fit, or what several processes can't share.
        """
        place = place or Place()
        if source.vocab > model.config.vocab:
            raise UsageError(
                f"the data has {source.vocab} different tokens and the model knows {model.config.vocab}; "
                "train another model on it"
            )
        if sharing == "rows" and settings.batch % place.world:
            raise UsageError(f"{place.world} processes can't share batches of {settings.batch} evenly")
        if sharing == "documents" and not settings.documents_per_group:
            raise UsageError("sharing documents needs --documents-per-group")
        if settings.documents_per_group:
            from mnemos.attention.training.document_passes import check_model

            check_model(model)
        self.model, self.source, self.settings = model.to(place.device), source, settings
        self.folder, self.place, self.sharing, self.notes = folder, place, sharing, notes or {}
        self.step = 0  # made so far
        self.sample = 0  # the next sample's number
        self.rewinds = 0
        self.records: list[StepRecord] = []
        self._watch = DivergenceWatch()
        decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
        others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
        self._optimiser = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": settings.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=settings.learning_rate,
            betas=settings.betas,
        )
        self._good = self._state()

    def run(
        self,
        *,
        until: int | None = None,
        on_step: Callable[[StepRecord], None] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Trains up to step `until`, to the end without it; whether it got there. What came is saved.

        Raises:
            ModelError: the loss went wrong again and again.
            OSError: a checkpoint can't be written.
        """
        last = min(until or self.settings.steps, self.settings.steps)
        self.model.train()
        while self.step < last:
            if self._all_stop(should_stop()):
                self._save()
                return False
            record = self._take_step()
            self.records.append(record)
            self._log(record)
            if on_step is not None and self.place.is_first:
                on_step(record)
            if record.went_back is None and self.step % self.settings.save_every == 0 and self.step < last:
                self._save()
        self._save()
        return True

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes on from a checkpoint of this run, whose model has been given already."""
        progress = checkpoint.progress
        self.step, self.sample, self.rewinds = progress["step"], progress["sample"], progress["rewinds"]
        self._watch.restore(progress["losses"])
        restore_optimiser(self.model, self._optimiser, checkpoint.optimiser)
        restore_random(checkpoint.random)
        self._good = self._state()
        if self.folder is not None:
            self.records = read_log(self.folder / LOG, before=self.step)
            if self.place.is_first:
                lines = [json.dumps(asdict(record)) + "\n" for record in self.records]
                (self.folder / LOG).write_text("".join(lines), encoding="utf-8")

    def _take_step(self) -> StepRecord:
        start = time.perf_counter()
        settings, length = self.settings, self.settings.length_at(self.step)
        if self.step and length != settings.length_at(self.step - 1):
            self._watch.forget()
        rate = settings.learning_rate_at(self.step)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        batch = self._next_batch(length)
        self._optimiser.zero_grad(set_to_none=True)
        found = self._objective(batch)
        found.share.backward()  # type: ignore[no-untyped-call]
        self.place.sum_gradients(self.model.parameters())
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip))
        wrong = self._watch.judge(found.next_token, norm)
        step = self.step
        if wrong is None:
            self._optimiser.step()
            self.step += 1
            if self.step % settings.snapshot_every == 0:
                self._good = self._state()
        else:
            self._go_back(wrong)
        seconds = time.perf_counter() - start
        return StepRecord(
            step, found.next_token, found.router, norm, rate, length, found.tokens, seconds, wrong
        )

    def _objective(self, batch: Batch) -> Objective:
        settings = self.settings
        next_token, router = settings.weights_at(self.step) if self.model.reads_documents else (1.0, 0.0)
        return objective(
            self.model,
            batch,
            Weights(next_token, router, settings.z_loss),
            group=settings.documents_per_group,
            sharing=self.sharing,
            place=self.place,
            bf16=settings.bf16,
        )

    def _next_batch(self, length: int) -> Batch:
        first, count, place = self.sample, self.settings.batch, self.place
        self.sample += count
        rows = range(first, first + count)
        mine = rows[place.rank :: place.world] if self.sharing == "rows" else rows
        return make_batch([self.source.sample(index, length) for index in mine]).to(place.device)

    def _go_back(self, reason: str) -> None:
        """To the last good state; the samples that led away from it are not seen again."""
        self.rewinds += 1
        if self.rewinds > self.settings.rewinds:
            raise ModelError(
                f"training went wrong {self.rewinds} times, last at step {self.step}: {reason}; "
                "go on from its checkpoint with a lower --learning-rate"
            )
        good = self._good
        self.step = good.step
        self.model.load_state_dict(good.model)
        restore_optimiser(self.model, self._optimiser, good.optimiser)
        self._watch.restore(good.watch)

    def _state(self) -> _Good:
        model = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        moments = optimiser_tensors(self.model, self._optimiser)
        optimiser = {name: tensor.detach().clone() for name, tensor in moments.items()}
        return _Good(self.step, model, optimiser, self._watch.to_json())

    def _save(self) -> None:
        if self.folder is not None and self.place.is_first:
            progress = {
                "settings": self.settings.to_json(),
                "notes": self.notes,
                "step": self.step,
                "sample": self.sample,
                "rewinds": self.rewinds,
                "losses": self._watch.to_json(),
            }
            moments = optimiser_tensors(self.model, self._optimiser)
            save_checkpoint(
                self.folder,
                self.step,
                self.model,
                moments,
                random_tensors(),
                progress,
                keep=self.settings.keep,
            )
        self._good = self._state()
        self.place.wait()

    def _all_stop(self, wanted: bool) -> bool:
        """Whether any process was told to."""
        if self.place.world == 1:
            return wanted
        return bool(self.place.sum(torch.tensor([float(wanted)], device=self.place.device)))

    def _log(self, record: StepRecord) -> None:
        if self.folder is not None and self.place.is_first:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(record)) + "\n")


def read_log(path: Path, *, before: int) -> list[StepRecord]:
    """Records of a log up to step `before`; a last line that was cut off is left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            record = StepRecord(**json.loads(line))
            if record.step < before:
                records.append(record)
    return records
