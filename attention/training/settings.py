"""How a model is trained, and the schedules that follow from it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from mnemos.errors import InvalidWeightsError, UsageError

LM_WEIGHTS = (0.1, 1.0)
"""Of the next-token loss in the first and the second phase (MSA, arXiv 2603.23516, section 3.3)."""

ROUTE_WEIGHTS = (1.0, 0.1)
"""Of the router's loss, likewise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """Counts are of steps and samples, lengths are in tokens."""

    steps: int = 1000
    batch: int = 8
    length: int = 2048
    start_length: int | None = None  # of the curriculum; `length` from the start without it
    learning_rate: float = 1e-3
    warmup: int = 50
    final_rate: float = 0.1  # the last step's learning rate, as a share of the highest
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0  # the largest norm of a gradient
    z_loss: float = 1e-4
    router_share: float = 0.2  # of all steps: the first phase, mostly for the router
    bf16: bool = False
    documents_per_group: int = 0  # whose activations are held at once; 0 for all
    seed: int = 0
    save_every: int = 200
    snapshot_every: int = 20  # steps from one state to go back to until the next
    rewinds: int = 5  # in one run, before it is given up
    keep: int = 2  # checkpoints

    def __post_init__(self) -> None:
        """Raises UsageError for numbers that no training can have."""
        for name in ("steps", "batch", "length", "save_every", "snapshot_every", "keep"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        if self.start_length is not None and not 1 <= self.start_length <= self.length:
            raise UsageError(f"the first length must be from 1 to {self.length}, not {self.start_length}")
        for name in ("learning_rate", "clip"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise UsageError(f"{name.replace('_', '-')} must be above 0, not {getattr(self, name)}")
        if not 0 <= self.router_share <= 1:
            raise UsageError(f"the router's share of steps must be from 0 to 1, not {self.router_share}")

    def learning_rate_at(self, step: int) -> float:
        """A linear rise over `warmup` steps, then half a cosine down to `final_rate` of the top."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = min((step - self.warmup) / max(self.steps - self.warmup, 1), 1.0)
        share = self.final_rate + (1 - self.final_rate) * (1 + math.cos(math.pi * done)) / 2
        return self.learning_rate * share

    def weights_at(self, step: int) -> tuple[float, float]:
        """Of the next-token loss and of the router's."""
        phase = 0 if step < self.router_share * self.steps else 1
        return LM_WEIGHTS[phase], ROUTE_WEIGHTS[phase]

    def length_at(self, step: int) -> int:
        """Doubles from `start_length` in even stages over the first half of all steps, then is `length`."""
        first = self.start_length or self.length
        stages = math.ceil(math.log2(self.length / first))  # before the full length
        if not stages:
            return self.length
        stage = int(2 * stages * step / self.steps)
        return min(first * 2**stage, self.length) if stage < stages else self.length

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "TrainSettings":
        """Raises InvalidWeightsError for what `to_json` can't have made."""
        known = {field.name for field in fields(cls)}
        if set(data) != known:
            raise InvalidWeightsError("the checkpoint's settings are of another Mnemos; train anew")
        return cls(**{**data, "betas": tuple(data["betas"])})
