"""`mnemos train ...`: training, told as it goes. The loops themselves are in `attention/training`."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mnemos.errors import UsageError
from mnemos.tui import console, output, plotting
from mnemos.tui.benches import Threads
from mnemos.tui.options import Json, UnusedBank, UnusedNamespace
from mnemos.tui.sparkline import sparkline

if TYPE_CHECKING:
    from mnemos.attention.training.trainer import StepRecord

train = typer.Typer(
    name="train", help="Train routers and small models.", no_args_is_help=True, rich_markup_mode=None
)
_PLOT_EVERY_S = 5.0
_SPARKS = 32  # characters
_OF_A_RESUMED_RUN = {"out", "resume", "plot", "threads", "bank", "namespace", "json"}


@train.command("lm")
def lm(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where checkpoints and the log go.")],
    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--data",
            metavar="FILE",
            help="Text, or JSON lines; may be repeated.",
            show_default=False,
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", metavar="NAME", help="needle, in place of files.", show_default=False),
    ] = None,
    pattern: Annotated[
        str, typer.Option("--pattern", metavar="NAME,NAME", help="What each layer mixes by, first to last.")
    ] = "window,msa",
    start_from: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="NAME|PATH",
            help="A pretrained Llama to go on from; patterns are stretched over its layers.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, with its data and settings.")
    ] = False,
    steps: Annotated[int, typer.Option("--steps", min=1, metavar="N", help="Updates to make.")] = 1000,
    batch: Annotated[int, typer.Option("--batch", min=1, metavar="N", help="Sequences a step.")] = 16,
    length: Annotated[int, typer.Option("--length", min=2, metavar="N", help="Tokens of a sequence.")] = 264,
    start_length: Annotated[
        int | None,
        typer.Option(
            "--start-length",
            min=2,
            metavar="N",
            help="At first; doubles until half of all steps.",
            show_default=False,
        ),
    ] = None,
    document: Annotated[
        int, typer.Option("--document", min=2, metavar="N", help="Tokens of a document.")
    ] = 64,
    pool: Annotated[
        int, typer.Option("--pool", min=1, metavar="N", help="Tokens that msa keeps as one.")
    ] = 16,
    top_k: Annotated[int, typer.Option("--top-k", min=1, metavar="N", help="Documents that msa reads.")] = 4,
    window: Annotated[
        int, typer.Option("--window", min=1, metavar="N", help="Tokens that windows and blocks have.")
    ] = 64,
    facts: Annotated[
        int, typer.Option("--facts", min=1, metavar="N", help="Facts of a needle document.")
    ] = 4,
    dim: Annotated[int, typer.Option("--dim", min=2, metavar="N", help="Channels of a new model.")] = 128,
    heads: Annotated[int, typer.Option("--heads", min=1, metavar="N", help="Of a new model.")] = 4,
    learning_rate: Annotated[float, typer.Option("--learning-rate", metavar="X", help="The highest.")] = 1e-3,
    router_share: Annotated[
        float,
        typer.Option("--router-share", metavar="X", help="Of all steps, first, mostly for the router."),
    ] = 0.2,
    documents_per_group: Annotated[
        int,
        typer.Option(
            "--documents-per-group",
            min=0,
            metavar="N",
            help="Documents whose activations are held at once; 0 for all.",
        ),
    ] = 0,
    share: Annotated[
        str,
        typer.Option("--share", metavar="WHAT", help="What torchrun's processes share: rows or documents."),
    ] = "rows",
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="TYPE", help="fp32 or bf16 to multiply in.")
    ] = "fp32",
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Of weights and samples.")] = 0,
    save_every: Annotated[
        int, typer.Option("--save-every", min=1, metavar="N", help="Steps between checkpoints.")
    ] = 200,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE", help="Draw the losses as PNG, as it goes.", show_default=False
        ),
    ] = None,
    threads: Threads = None,
    bank: UnusedBank = None,
    namespace: UnusedNamespace = "default",
    json: Json = False,
) -> None:
    """Train a small model of any attention patterns, its router with it."""
    if plot is not None:
        plotting.check(plot, overwrite=resume)
    if resume:
        _refuse_settings(context)
    if dtype not in ("fp32", "bf16"):
        raise UsageError(f"models are trained in fp32 or bf16, not '{dtype}'")
    from mnemos.attention.training.lm import resume_lm, train_lm
    from mnemos.attention.training.request import LmRequest
    from mnemos.attention.training.settings import TrainSettings

    with _stopping() as should_stop, console.live_line() as show:
        teller = _Teller(show, plot)
        if resume:
            report = resume_lm(out, threads=threads, on_step=teller, should_stop=should_stop)
        else:
            request = LmRequest(
                layers=tuple(name.strip() for name in pattern.split(",") if name.strip()),
                data=tuple(str(path) for path in data or ()),
                task=task,
                start_from=start_from,
                dim=dim,
                heads=heads,
                kv_heads=heads // 2 if heads % 2 == 0 else heads,
                document=document,
                pool=pool,
                top_k=top_k,
                window=window,
                facts=facts,
                sharing=share,  # type: ignore[arg-type]  # checked there
            )
            settings = TrainSettings(
                steps=steps,
                batch=batch,
                length=length,
                start_length=start_length,
                learning_rate=learning_rate,
                router_share=router_share,
                documents_per_group=documents_per_group,
                bf16=dtype == "bf16",
                seed=seed,
                save_every=save_every,
            )
            teller.steps = steps
            report = train_lm(
                request, settings, out, threads=threads, on_step=teller, should_stop=should_stop
            )
        teller.finish()
    if report is None:  # not the first of several processes
        return
    if json:
        output.document(asdict(report))
    else:
        output.fields(asdict(report))
    if not report.finished:
        console.say(f"stopped at step {report.step} and saved; go on with --resume --out {out}")
        raise typer.Exit(console.INTERRUPTED)


class _Teller:
    """Shows a run's steps on one line, and draws them now and then."""

    def __init__(self, show: Callable[[str], None], plot: Path | None) -> None:
        self.steps = 0
        self._show, self._plot = show, plot
        self._records: list[StepRecord] = []
        self._drawn_s = time.monotonic()

    def __call__(self, record: "StepRecord") -> None:
        self._records.append(record)
        if record.went_back is not None:
            console.say(f"step {record.step}: {record.went_back}; back to the last good state")
            return
        losses = sparkline([each.loss for each in self._records], _SPARKS)
        router = "" if record.router is None else f"  router {record.router:.3f}"
        speed = record.tokens / record.seconds
        of = f"/{self.steps}" if self.steps else ""
        self._show(
            f"step {record.step + 1}{of}  {losses}  loss {record.loss:.3f}{router}  {speed:,.0f} tokens/s"
        )
        if time.monotonic() - self._drawn_s > _PLOT_EVERY_S:
            self._draw()

    def finish(self) -> None:
        """The last picture."""
        if self._plot is not None and self._records:
            self._draw()
            console.say(f"drawn to {self._plot}")

    def _draw(self) -> None:
        if self._plot is not None:
            from mnemos.tui.loss_plot import plot_losses

            plot_losses(self._records, self._plot)
            self._drawn_s = time.monotonic()


def _refuse_settings(context: typer.Context) -> None:
    """Raises UsageError where a setting is given that a resumed run has already."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in _OF_A_RESUMED_RUN and source is not None and source.name == "COMMANDLINE":
            option = "--from" if name == "start_from" else f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} is as it was when the run began; leave it out with --resume")


@contextmanager
def _stopping() -> Iterator[Callable[[], bool]]:
    """Whether the person wants to stop: the first Ctrl-C asks, a second one interrupts."""
    asked = False

    def ask(_signal: int, _frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        console.say("stopping after this step; press Ctrl-C again to stop without saving")

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)
