"""Pictures of measurements: cost against size, and recall by depth and size."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnemos.errors import MnemosError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("#2f6690", "#9a5b13", "#3f7a68", "#8a8f98")
_DOTS = 120
_COSTS = ("route_ms_p50", "route_cold_ms_p50", "query_ms", "page_ms")
_WRITES = ("remember_ms", "forget_ms")
_SIZES = (("rss_mb", "MB of memory"), ("disk_gb", "GB of disk"))


def plot_scale(measured: Mapping[str, Any], path: Path) -> None:
    """`bench scale`: milliseconds, memory and disk against tokens. MnemosError when it can't be written."""
    from matplotlib.figure import Figure

    sizes = {int(size): figures for size, figures in measured["sizes"].items()}
    tokens = sorted(sizes)
    figure = Figure(figsize=(10, 7), layout="constrained")
    panels = figure.subplot_mosaic([["read", "write"], ["rss_mb", "disk_gb"]])
    for name, title, fields in (("read", "reading, ms", _COSTS), ("write", "writing, ms", _WRITES)):
        axes = panels[name]
        for colour, field in zip(_COLOURS, fields, strict=False):
            values = [sizes[size][field] for size in tokens]
            axes.plot(tokens, values, marker="o", color=colour, label=field)
        axes.set_title(title)
        axes.legend(frameon=False)
    for field, title in _SIZES:
        panels[field].plot(tokens, [sizes[size][field] for size in tokens], marker="o", color=_COLOURS[0])
        panels[field].set_title(title)
    for axes in panels.values():
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("tokens")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    _save(figure, path)


def plot_needle(measured: Mapping[str, Any], path: Path) -> None:
    """`eval needle`: recall by depth (down) and size (across). MnemosError when it can't be written."""
    from matplotlib.figure import Figure

    by_depth: Mapping[str, Mapping[str, float]] = measured["by_depth"]
    sizes = sorted(by_depth, key=int)
    depths = sorted({depth for shares in by_depth.values() for depth in shares}, key=float)
    cells = [[by_depth[size].get(depth, float("nan")) for size in sizes] for depth in depths]
    figure = Figure(figsize=(2.5 + 1.2 * len(sizes), 1.5 + 0.5 * len(depths)), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(cells, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
    for row, shares in enumerate(cells):
        for column, share in enumerate(shares):
            if share == share:
                axes.text(column, row, f"{share:.2f}", ha="center", va="center")
    axes.set_xticks(range(len(sizes)), [f"{int(size):,}" for size in sizes])
    axes.set_yticks(range(len(depths)), [f"{float(depth):.0%}" for depth in depths])
    axes.set_xlabel("tokens")
    axes.set_ylabel("depth")
    axes.set_title(f"recall of the needle's memory, k = {measured['k']}")
    figure.colorbar(shown)
    _save(figure, path)


def _save(figure: "Figure", path: Path) -> None:
    """Whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        figure.savefig(part, format="png", dpi=_DOTS)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise MnemosError(f"{path} can't be written: {error.strerror}") from None
