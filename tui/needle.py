"""`mnemos eval needle`: prints whether facts hidden in long text are found again."""

from pathlib import Path
from typing import Annotated

import typer

from mnemos.tui import console, output
from mnemos.tui.bench_scale import parse_sizes
from mnemos.tui.evals import MOST_FOUND
from mnemos.tui.options import Json, KeptBanks, Model, OverwritePicture, UnusedBank, UnusedNamespace
from mnemos.tui.recollections import Router

_MOST_TOKENS = 100_000_000


def needle(
    tokens: Annotated[
        str, typer.Option("--tokens", metavar="N,N", help="Sizes of the haystack: 1e5,1e6.")
    ] = "1e5",
    filler: Annotated[
        Path | None,
        typer.Option(
            "--filler",
            metavar="FILE",
            help="JSON lines with a `text`, gzipped or not; words are made up without.",
            show_default=False,
        ),
    ] = None,
    repeats: Annotated[
        int,
        typer.Option("--repeats", min=1, max=4, metavar="N", help="Questions of each task, value and depth."),
    ] = 1,
    k: Annotated[
        int, typer.Option("--k", min=1, max=MOST_FOUND, metavar="N", help="Memories found for a question.")
    ] = 8,
    router: Annotated[
        Router, typer.Option("--router", help="full and latent use the model, lexical needs none.")
    ] = Router.FULL,
    answers: Annotated[
        int,
        typer.Option("--answers", min=0, metavar="N", help="Questions of each size that an agent answers."),
    ] = 12,
    path: KeptBanks = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE.png", help="Draw recall by depth and size.", show_default=False),
    ] = None,
    overwrite: OverwritePicture = False,
    model: Model = None,
    bank: UnusedBank = None,
    namespace: UnusedNamespace = "default",
    json: Json = False,
) -> None:
    """Measure whether facts hidden in long text are found, by depth and size."""
    sizes = parse_sizes(tokens, most=_MOST_TOKENS)
    if plot is not None:
        from mnemos.tui import plotting

        plot = plot.expanduser()
        plotting.check(plot, overwrite=overwrite)
    from mnemos.agent import evaluate_needle
    from mnemos.tui.opening import load_model

    loaded = None if router is Router.LEXICAL else load_model(model)
    with console.progress("hiding needles") as on_progress:
        measured = evaluate_needle.run(
            tokens=sizes,
            model=loaded,
            filler=filler,
            repeats=repeats,
            k=k,
            router=router.value,
            answers=answers,
            kept=None if path is None else path.expanduser(),
            on_progress=on_progress,
        )
    if plot is not None:
        from mnemos.tui.measure_plots import plot_needle

        plot_needle(measured, plot)
        console.say(f"drawn to {plot}")
    if json:
        output.document(measured)
    else:
        output.fields(measured)
