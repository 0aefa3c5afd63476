"""`mnemos bench scale`: prints what a bank costs as it grows."""

from pathlib import Path
from typing import Annotated

import typer

from mnemos.errors import UsageError
from mnemos.tui import console, output
from mnemos.tui.benches import Threads
from mnemos.tui.options import Json, Model, OverwritePicture, UnusedBank, UnusedNamespace

_MOST_TOKENS = 1_000_000_000
_SHOWN: tuple[str, ...] = ("memories", "vivid", "open_s", "rss_mb", "disk_gb", "route_ms_p50", "route_ms_p95")
_SHOWN += ("route_cold_ms_p50", "query_ms", "page_ms", "remember_ms", "forget_ms")
_SHOWN += ("route_cpu_ms", "query_cpu_ms", "page_cpu_ms", "build_s")


def scale(
    tokens: Annotated[
        str, typer.Option("--tokens", metavar="N,N", help="Sizes of the banks: 1e6,1e7.")
    ] = "1e6,1e7",
    books: Annotated[
        Path | None,
        typer.Option(
            "--books",
            metavar="FILE",
            help="JSON lines with a `text`, gzipped or not; words are made up without.",
            show_default=False,
        ),
    ] = None,
    vivid_gb: Annotated[
        float, typer.Option("--vivid-gb", min=0.0, metavar="GB", help="KV at most; the rest is faint.")
    ] = 5.0,
    encoded: Annotated[
        int,
        typer.Option("--encoded", min=2, metavar="N", help="Memories that the model really encodes."),
    ] = 128,
    queries: Annotated[
        int, typer.Option("--queries", min=2, metavar="N", help="Questions asked of each bank.")
    ] = 24,
    path: Annotated[
        Path | None,
        typer.Option(
            "--path",
            metavar="PATH",
            help="Make the banks there and leave them; one that is there is measured again.",
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE.png", help="Draw cost against size.", show_default=False),
    ] = None,
    overwrite: OverwritePicture = False,
    threads: Threads = None,
    model: Model = None,
    bank: UnusedBank = None,
    namespace: UnusedNamespace = "default",
    json: Json = False,
) -> None:
    """Measure opening, routing, paging, remembering and forgetting as a bank grows."""
    sizes = parse_sizes(tokens, most=_MOST_TOKENS)
    if plot is not None:
        from mnemos.tui import plotting

        plot = plot.expanduser()
        plotting.check(plot, overwrite=overwrite)
    from mnemos.memory import bench_scale

    with console.progress("filling banks") as on_progress:
        measured = bench_scale.run(
            tokens=sizes,
            books=books,
            vivid_gb=vivid_gb,
            encoded=encoded,
            queries=queries,
            model=model,
            threads=threads,
            path=path,
            on_progress=on_progress,
        )
    if plot is not None:
        from mnemos.tui.measure_plots import plot_scale

        plot_scale(measured, plot)
        console.say(f"drawn to {plot}")
    if json:
        output.document(measured)
        return
    rows = [(name, *(figures[name] for figures in measured["sizes"].values())) for name in _SHOWN]
    output.table(("tokens", *measured["sizes"]), rows, right=tuple(measured["sizes"]))
    console.say(measured["synthetic"])


def parse_sizes(text: str, *, most: int) -> list[int]:
    """Numbers of tokens apart by commas (`100000,1e6`), each once. UsageError."""
    try:
        found = list(dict.fromkeys(int(float(part)) for part in text.split(",")))
    except (ValueError, OverflowError):
        found = []
    if not found or min(found) < 1 or max(found) > most:
        raise UsageError(f"--tokens takes numbers from 1 to {most:.0e} apart by commas, not {text!r}")
    return found
