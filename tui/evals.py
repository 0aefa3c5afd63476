"""`mnemos eval ...`: prints how well models recall and read."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mnemos.errors import UsageError
from mnemos.tui import output
from mnemos.tui.console import progress
from mnemos.tui.options import Json, KeptBanks, Model, UnusedBank, UnusedNamespace
from mnemos.tui.recollections import Router

MOST_FOUND = 1000  # memories that one search may be asked for here
Data = Annotated[Path, typer.Argument(metavar="FILE", help="Conversations, JSON lines, gzipped or not.")]


class Unit(StrEnum):
    """What one memory holds."""

    TURN = "turn"
    PAIR = "pair"


class Rival(StrEnum):
    """What recall is measured beside."""

    MINILM = "minilm"


def recall(
    file: Data,
    unit: Annotated[Unit, typer.Option("--unit", help="A memory of each turn, or of two.")] = Unit.TURN,
    k: Annotated[str, typer.Option("--k", metavar="N,N", help="Numbers of memories found.")] = "1,5,10,16,20",
    router: Annotated[
        Router, typer.Option("--router", help="full and latent use the model, lexical needs none.")
    ] = Router.FULL,
    conversations: Annotated[
        int | None,
        typer.Option("--conversations", min=1, metavar="N", help="The first ones; all without."),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="All conversations in one namespace, each in the other's way.")
    ] = False,
    questions: Annotated[
        int | None,
        typer.Option("--questions", min=1, metavar="N", help="How many, spread evenly; all without."),
    ] = None,
    rounds: Annotated[
        int,
        typer.Option("--rounds", min=1, metavar="N", help="Of recall; each asks with what the last found."),
    ] = 1,
    rival: Annotated[
        Rival | None, typer.Option("--rival", help="Put the questions to BM25 and MiniLM too.")
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option("--export", metavar="PATH", help="Write each question's ranks there, JSON lines."),
    ] = None,
    path: KeptBanks = None,
    model: Model = None,
    bank: UnusedBank = None,
    namespace: UnusedNamespace = "default",
    json: Json = False,
) -> None:
    """Measure recall: how much of the evidence of questions a search finds."""
    ks = parse_numbers(k, most=MOST_FOUND)
    if export is not None and not export.absolute().parent.is_dir():
        raise UsageError(f"--export: there is no directory {export.absolute().parent}")
    from mnemos.memory import evaluate_recall
    from mnemos.tui.opening import load_model

    loaded = None if router is Router.LEXICAL else load_model(model)
    if rival is not None:
        from mnemos.attention.embedder_files import MINILM, fetch_embedder

        with progress(f"fetching {MINILM.name}", in_bytes=True) as on_progress:
            fetch_embedder(MINILM, on_progress)
    with progress("recalling") as on_progress:
        measured = evaluate_recall.run(
            file,
            model=loaded,
            unit=unit.value,
            ks=ks,
            router=router.value,
            conversations=conversations,
            merge=merge,
            questions=questions,
            rounds=rounds,
            rival=None if rival is None else rival.value,
            export=export,
            kept=path,
            on_progress=on_progress,
        )
    if json:
        output.document(measured)
    else:
        output.fields(measured)


def read(
    file: Data,
    k: Annotated[str, typer.Option("--k", metavar="N,N", help="Numbers of memories.")] = "6,14",
    questions: Annotated[
        int | None,
        typer.Option("--questions", min=1, metavar="N", help="How many, spread over the file; all without."),
    ] = None,
    memory_tokens: Annotated[
        int, typer.Option("--memory-tokens", min=1, metavar="N", help="Of one memory at most.")
    ] = 192,
    answer_tokens: Annotated[
        int, typer.Option("--answer-tokens", min=1, metavar="N", help="Of an answer at most.")
    ] = 128,
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
        measured = evaluate_reading.run(
            loaded,
            file,
            ks=ks,
            questions=questions,
            memory_tokens=memory_tokens,
            answer_tokens=answer_tokens,
            on_progress=on_progress,
        )
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


def parse_numbers(text: str, most: int = 64) -> list[int]:
    """Comma-separated numbers from 1 to `most`, each once. UsageError."""
    try:
        found = list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        found = []
    if not found or min(found) < 1 or max(found) > most:
        raise UsageError(f"--k takes numbers from 1 to {most} apart by commas, not {text!r}")
    return found
