"""`mnemos bench attention`: the field's table, measured columns beside claimed ones, and its picture."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from mnemos.errors import UsageError
from mnemos.tui import console, output, plotting
from mnemos.tui.benches import Threads
from mnemos.tui.options import Json, OverwritePicture, UnusedBank, UnusedNamespace

_UNITS = {"k": 1024, "m": 1024 * 1024}
_COLUMNS = ("pattern", "tokens/s", "to dense", "peak", "time ~ n^", "claimed", "memory ~ n^", "claimed ",
            "longest", "recall")  # fmt: skip


def attention(
    lengths: Annotated[
        str | None,
        typer.Option(
            "--lengths",
            metavar="N,N",
            help="In tokens, such as 512,1k,32k,1m; what suits the machine without it.",
            show_default=False,
        ),
    ] = None,
    patterns: Annotated[
        str | None,
        typer.Option(
            "--patterns",
            metavar="NAME,NAME",
            help="Only these, and dense; a+b takes turns.",
            show_default=False,
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            metavar="N",
            help="The length of dense that speeds are held against.",
            show_default=False,
        ),
    ] = None,
    needle_steps: Annotated[
        int,
        typer.Option("--needle-steps", min=0, metavar="N", help="Of training before needles are looked for."),
    ] = 240,
    repetitions: Annotated[
        int, typer.Option("--repetitions", min=1, metavar="N", help="Timed steps of each length.")
    ] = 3,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw time and memory by length.", show_default=False),
    ] = None,
    overwrite: OverwritePicture = False,
    threads: Threads = None,
    bank: UnusedBank = None,
    namespace: UnusedNamespace = "default",
    json: Json = False,
) -> None:
    """Measure attention patterns: training speed and memory by length, and recall of needles."""
    if plot is not None:
        plotting.check(plot, overwrite=overwrite)
    wanted = None if lengths is None else [length_of(part) for part in lengths.split(",")]
    at = None if reference is None else length_of(reference)
    from mnemos.attention import bench_attention

    with console.progress("training with each pattern") as on_progress:
        found = bench_attention.run(
            wanted,
            None if patterns is None else [name.strip() for name in patterns.split(",")],
            reference=at,
            needle_steps=needle_steps,
            repetitions=repetitions,
            threads=threads,
            on_progress=on_progress,
        )
    if plot is not None:
        from mnemos.tui.bench_attention_plot import plot_attention

        plot_attention(found, plot)
        console.say(f"drawn to {plot}")
    if json:
        output.document(found)
        return
    output.table(_COLUMNS, [_row(name, row) for name, row in found["patterns"].items()], right=_COLUMNS[1:])
    fits = output.size(found["memory_budget_bytes"])
    console.say(
        "tokens/s, to dense and peak are of the longest length measured; to dense: of dense at "
        f"{found['reference_length']:,} tokens; longest: what fits {fits}, by the fit where marked ~; "
        f"recall: after {found['recall_steps']} steps, at {found['recall_length']} tokens"
    )


def length_of(text: str) -> int:
    """`512`, `32k` (of 1,024) or `1m` in tokens. Raises UsageError."""
    word = text.strip().lower()
    number, unit = (word[:-1], _UNITS[word[-1]]) if word and word[-1] in _UNITS else (word, 1)
    if not number.isdecimal() or not int(number):
        raise UsageError(f"'{text}' is no length; write numbers such as 512, 32k or 1m")
    return int(number) * unit


def _row(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    measured = [length for length, speed in row["tokens_per_s"].items() if speed is not None]
    if not measured:
        return (name, *["-"] * (len(_COLUMNS) - 1))
    last = measured[-1]
    longest = row["longest_length"]
    mark = "~" if row["longest_is"] == "estimated" else ""
    return (
        name,
        f"{row['tokens_per_s'][last]:,.0f}",
        f"{row['ratio_to_dense'][last]:.2f}",
        output.size(row["peak_bytes"][last]),
        _exponent(row["time_exponent"], row["time_exponent_error"]),
        f"{row['claimed_time']}",
        _exponent(row["memory_exponent"], row["memory_exponent_error"]),
        f"{row['claimed_memory']}",
        "-" if longest is None else f"{mark}{_rounded(longest):,}",
        "-" if row["recall"] is None else f"{row['recall']:.2f}",
    )


def _exponent(value: float | None, error: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if error is None else f"{value:.2f} ± {error:.2f}"


def _rounded(count: int) -> int:
    """To two digits: a fit knows no more."""
    step: int = 10 ** max(int(math.log10(max(count, 1))) - 1, 0)
    return count // step * step
