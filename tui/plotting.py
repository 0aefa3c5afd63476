"""A picture of a namespace: how it grew, and where its bytes are."""

import os
from datetime import datetime, time
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from mnemos.errors import MnemosError, NotFoundError, UsageError
from mnemos.tui import output
from mnemos.tui.console import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mnemos.memory.records import Fidelity, Kind
    from mnemos.memory.survey import Part, Survey

_COLOURS = ("#2f6690", "#9a5b13", "#3f7a68", "#8a8f98")
_SIZE_INCHES, _DOTS = (10, 7), 120


def check(path: Path, *, overwrite: bool) -> None:
    """Whether a picture can be made there, before anything is counted. MnemosError, UsageError."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise MnemosError("a plot needs matplotlib: `pip install 'mnemos[plot]'`") from None
    if path.suffix.lower() != ".png":
        raise UsageError(f"a plot is a PNG picture; name it {path.with_suffix('.png').name}")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists already; choose another name, or add --overwrite")


def plot(survey: "Survey", namespace: str, path: Path) -> None:
    """Writes the picture, whole or not at all. NotFoundError without memories; MnemosError of the disk."""
    from matplotlib.figure import Figure

    if not survey.days:
        raise NotFoundError(
            f"'{namespace}' holds no memory, so there is nothing to plot; nothing was written"
        )
    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    growth, words, traces = figure.subplot_mosaic([["growth", "growth"], ["words", "traces"]]).values()
    _growth(growth, survey)
    _bars(words, "words by kind", survey.kinds)
    _bars(traces, "traces by fidelity", survey.fidelities)
    held = f"{survey.memories:,} memories, {output.size(survey.text_bytes + survey.trace_bytes)}"
    figure.suptitle(f"{visible(namespace)}: {held}", parse_math=False)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        figure.savefig(part, format="png", dpi=_DOTS)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise MnemosError(f"{path} can't be written: {error.strerror}") from None


def _growth(axes: "Axes", survey: "Survey") -> None:
    """Memories that there are by the end of each day, by kind."""
    days = survey.days
    kinds: list[Kind] = sorted(survey.kinds, key=lambda kind: -survey.kinds[kind].memories)
    # The first day starts at nothing, so that one day alone is a slope and not a point.
    moments = [datetime.combine(min(days), time()), *(datetime.combine(day, time.max) for day in days)]
    sums = []
    for kind in kinds:
        counts = [day.kinds[kind].memories if kind in day.kinds else 0 for day in days.values()]
        sums.append([0, *accumulate(counts)])
    axes.stackplot(moments, *sums, labels=kinds, colors=_COLOURS)  # type: ignore[arg-type]
    axes.legend(loc="upper left", frameon=False)
    axes.set_title("memories")
    axes.set_ylim(bottom=0)
    axes.margins(x=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _bars(axes: "Axes", title: str, parts: "dict[Kind, Part] | dict[Fidelity, Part]") -> None:
    held = sorted(parts.items(), key=lambda part: part[1].bytes)
    names = [f"{name}\n{part.memories:,}" for name, part in held]
    bars = axes.barh(names, [part.bytes for _, part in held], color=_COLOURS[0])
    axes.bar_label(bars, [output.size(part.bytes) for _, part in held], padding=4)
    axes.set_title(title)
    axes.margins(x=0.2)
    axes.xaxis.set_visible(False)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
