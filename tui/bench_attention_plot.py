"""Time and memory of attention patterns by length, both axes logarithmic."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnemos.tui.loss_plot import save_figure

_SIZE_INCHES = (12, 6)
_MARKERS = "osD^vP*X<>h"


def plot_attention(found: Mapping[str, Any], path: Path) -> None:
    """Draws what `bench_attention.run` returned, whole or not at all. MnemosError of the disk."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    time, memory = figure.subplots(1, 2)
    colours = colormaps["tab20"].colors  # type: ignore[attr-defined]
    for number, (name, row) in enumerate(found["patterns"].items()):
        style = {
            "marker": _MARKERS[number % len(_MARKERS)],
            "color": colours[number % 20],
            "ms": 4,
            "lw": 1.2,
        }
        speeds = {int(length): speed for length, speed in row["tokens_per_s"].items() if speed is not None}
        time.plot(list(speeds), [length / speed for length, speed in speeds.items()], label=name, **style)
        peaks = {int(length): peak for length, peak in row["peak_bytes"].items() if peak is not None}
        memory.plot(list(peaks), [peak / 1e6 for peak in peaks.values()], **style)
    for axes, title in ((time, "seconds of a training step"), (memory, "MB of activations, at the peak")):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("tokens")
        axes.set_title(title)
        axes.grid(visible=True, which="major", lw=0.3)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    figure.suptitle(f"{found['device']}, {found['threads']} threads")
    save_figure(figure, path)
