"""`mnemos bench ...`: prints what the benchmarks of the lower rooms measure."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from mnemos.tui import console, output
from mnemos.tui.options import Json, Model, UnusedBank, UnusedNamespace

Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        metavar="N",
        help="CPU threads; torch's own choice without it.",
        show_default=False,
    ),
]


def decode(
    model: Model = None,
    threads: Threads = None,
    bank: UnusedBank = None,
    namespace: UnusedNamespace = "default",
    json: Json = False,
) -> None:
    """Measure prefill and decode speed against transformers with the same weights."""
    from mnemos.attention import bench_decode

    console.say("measuring prefill and decode ...")
    _show(bench_decode.run(model, threads=threads), json=json)


def paging(
    memories: Annotated[
        int, typer.Option("--memories", min=1, metavar="N", help="Memories recalled in a turn.")
    ] = 14,
    tokens: Annotated[int, typer.Option("--tokens", min=1, metavar="N", help="Tokens of each memory.")] = 100,
    threads: Threads = None,
    model: Model = None,
    bank: UnusedBank = None,
    namespace: UnusedNamespace = "default",
    json: Json = False,
) -> None:
    """Measure the time to first token with memories paged in against re-reading them as text."""
    from mnemos.memory import bench_paging

    console.say("measuring time to first token ...")
    _show(bench_paging.run(memories=memories, tokens=tokens, model=model, threads=threads), json=json)


def erase(
    memories: Annotated[
        int, typer.Option("--memories", min=50, metavar="N", help="Memories in the bank.")
    ] = 100_000,
    bank: UnusedBank = None,
    namespace: UnusedNamespace = "default",
    json: Json = False,
) -> None:
    """Measure how long forgetting takes in a large bank."""
    from mnemos.store import bench_erase

    console.say("filling a bank, then forgetting ...")
    _show(bench_erase.run(memories=memories), json=json)


def ingest(
    memories: Annotated[
        int, typer.Option("--memories", min=1, metavar="N", help="Memories written in one run.")
    ] = 320,
    tokens: Annotated[int, typer.Option("--tokens", min=1, metavar="N", help="Tokens of each memory.")] = 180,
    bank: UnusedBank = None,
    namespace: UnusedNamespace = "default",
    json: Json = False,
) -> None:
    """Measure writing memories and traces against a plain write of the same bytes."""
    from mnemos.store import bench_ingest

    console.say("writing banks and plain files in turn ...")
    _show(bench_ingest.run(memories=memories, tokens=tokens), json=json)


def _show(measured: Mapping[str, Any], *, json: bool) -> None:
    if json:
        output.document(measured)
    else:
        output.fields(measured)
