"""`mnemos eval ...`: prints how well models recall and read."""

from pathlib import Path
from typing import Annotated

import typer

from mnemos.errors import UsageError
from mnemos.tui import output
from mnemos.tui.console import progress
from mnemos.tui.options import Json, Model, UnusedBank, UnusedNamespace

Data = Annotated[Path, typer.Argument(metavar="FILE", help="Conversations, JSON lines, gzipped or not.")]


def read(
    file: Data,
    k: Annotated[str, typer.Option("--k", metavar="N,N", help="Numbers of memories.")] = "6,14",
    questions: Annotated[
        int | None,
        typer.Option("--questions", min=1, metavar="N", help="How many, spread over the file; all without."),
    ] = None,
    model: Model = None,
    bank: UnusedBank = None,
    namespace: UnusedNamespace = "default",
    json: Json = False,
) -> None:
    """Measure reading: the loss of right answers without memories, with them as text, and paged."""
    ks = parse_numbers(k)
    from mnemos.agent import evaluate_reading
    from mnemos.tui.opening import load_model

    loaded = load_model(model)
    with progress("reading") as on_progress:
        measured = evaluate_reading.run(loaded, file, ks=ks, questions=questions, on_progress=on_progress)
    if json:
        output.document(measured)
    else:
        output.fields(measured)


def facts(
    k: Annotated[str, typer.Option("--k", metavar="N,N", help="Numbers of memories.")] = "1,4,8,16",
    questions: Annotated[
        int | None, typer.Option("--questions", min=1, metavar="N", help="How many; all 64 without.")
    ] = None,
    model: Model = None,
    bank: UnusedBank = None,
    namespace: UnusedNamespace = "default",
    json: Json = False,
) -> None:
    """Measure short answers about personal facts, from memories as text and paged."""
    ks = parse_numbers(k)
    from mnemos.agent import evaluate_facts
    from mnemos.tui.opening import load_model

    loaded = load_model(model)
    with progress("answering") as on_progress:
        measured = evaluate_facts.run(loaded, ks=ks, questions=questions, on_progress=on_progress)
    if json:
        output.document(measured)
    else:
        output.fields(measured)


def parse_numbers(text: str) -> list[int]:
    """Comma-separated positive numbers, each once. UsageError."""
    try:
        found = list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        found = []
    if not found or min(found) < 1 or max(found) > 64:
        raise UsageError(f"--k takes numbers from 1 to 64 apart by commas, not {text!r}")
    return found
