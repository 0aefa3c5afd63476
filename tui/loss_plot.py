"""The picture of a training run: its losses by step, drawn anew as it goes on."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mnemos.errors import MnemosError

if TYPE_CHECKING:
    from mnemos.attention.training.trainer import StepRecord

_NEXT_TOKEN, _ROUTER, _WENT_BACK = "#2f6690", "#9a5b13", "#b3261e"
_SIZE_INCHES, _DOTS = (9, 5), 120


def plot_losses(records: "Sequence[StepRecord]", path: Path) -> None:
    """Writes the picture, whole or not at all. MnemosError of the disk."""
    from matplotlib.figure import Figure

    made = [record for record in records if record.went_back is None]
    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    axes = figure.subplots()
    axes.plot([record.step for record in made], [record.loss for record in made], color=_NEXT_TOKEN, lw=0.9,
              label="next token")  # fmt: skip
    routed = [(record.step, record.router) for record in made if record.router is not None]
    if routed:
        axes.plot(*zip(*routed, strict=True), color=_ROUTER, lw=0.9, label="router")
    for number, record in enumerate(record for record in records if record.went_back is not None):
        label = "went back" if number == 0 else None
        axes.axvline(record.step, color=_WENT_BACK, lw=0.8, ls=":", label=label)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    save_figure(figure, path)


def save_figure(figure: "object", path: Path) -> None:
    """Writes a matplotlib figure as PNG, whole or not at all. MnemosError of the disk."""
    from matplotlib.figure import Figure

    assert isinstance(figure, Figure)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        figure.savefig(part, format="png", dpi=_DOTS)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise MnemosError(f"{path} can't be written: {error.strerror}") from None
