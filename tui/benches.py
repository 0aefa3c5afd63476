"""`mnemos bench ...`: prints what the benchmarks of the lower rooms measure."""

from collections.abc import Mapping
from pathlib import Path
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
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="FORMAT",
            help="Decode weights to report first: auto, bf16, int8 or int4.",
            show_default=False,
        ),
    ] = None,
    rival: Annotated[
        str | None,
        typer.Option(
            "--rival",
            metavar="NAME",
            help="Compare with llamacpp too, on the same GGUF file.",
            show_default=False,
        ),
    ] = None,
    compile: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Demand kernels compiled on this machine, or do without.",
            show_default=False,
        ),
    ] = None,
    threads: Threads = None,
    bank: UnusedBank = None,
    namespace: UnusedNamespace = "default",
    json: Json = False,
) -> None:
    """Measure prefill and decode speed against transformers with the same weights."""
    from mnemos.attention import bench_decode

    console.say("measuring prefill and decode ...")
    measured = bench_decode.run(model, weights=weights, compile=compile, rival=rival, threads=threads)
    _show(measured, json=json)


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


def agent(
    conversations: Annotated[
        int, typer.Option("--conversations", min=1, metavar="N", help="Conversations at once, against one.")
    ] = 32,
    tokens: Annotated[int, typer.Option("--tokens", min=1, metavar="N", help="Tokens of each reply.")] = 48,
    turns: Annotated[
        int, typer.Option("--turns", min=10, metavar="N", help="Turns over which memory may grow.")
    ] = 1000,
    part: Annotated[
        list[str] | None,
        typer.Option(
            "--part",
            metavar="PART",
            help="Only this one of overhead, concurrency and memory; may be repeated.",
            show_default=False,
        ),
    ] = None,
    threads: Threads = None,
    model: Model = None,
    bank: UnusedBank = None,
    namespace: UnusedNamespace = "default",
    json: Json = False,
) -> None:
    """Measure what the agent costs beside its model, and how many conversations share one."""
    from mnemos.agent import bench_agent

    with console.progress("taking turns") as on_progress:
        found = bench_agent.run(
            model,
            conversations=conversations,
            tokens=tokens,
            turns=turns,
            parts=part or bench_agent.PARTS,
            threads=threads,
            on_progress=on_progress,
        )
    if json:
        output.document(found)
        return
    output.fields({name: value for name, value in found.items() if not isinstance(value, dict)})
    for name in bench_agent.PARTS:
        if name in found:
            output.fields({f"{name} {field}": value for field, value in found[name].items()})


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


def soak(
    operations: Annotated[
        int, typer.Option("--operations", min=1, metavar="N", help="Random operations on a new bank.")
    ] = 10_000,
    kills: Annotated[
        int, typer.Option("--kills", min=0, metavar="N", help="How often its process is killed.")
    ] = 200,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the operations.")] = 0,
    path: Annotated[
        Path | None,
        typer.Option(
            "--path", metavar="PATH", help="Make the bank there, and not with other temporary files."
        ),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the bank, with its key, for a look at it.")
    ] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Do not encrypt it, and search its bytes for what was erased.")
    ] = False,
    bank: UnusedBank = None,
    namespace: UnusedNamespace = "default",
    json: Json = False,
) -> None:
    """Kill a process that works on a bank, again and again, and say what was lost: exit code 4."""
    from mnemos.errors import DamageFoundError
    from mnemos.store import bench_soak

    with console.progress("working and killing") as on_progress:
        found = bench_soak.run(
            operations, kills, seed, path, keep=keep, encrypted=not plain, progress=on_progress
        )
    if json:
        output.document(found)
    else:
        output.fields(
            {**found, "problems": len(found["problems"]), "verified": found["verified"]["memories"]}
        )
    for problem in found["problems"]:
        console.say(problem)
    if not found["ok"]:
        console.say(f"error: {len(found['problems'])} things went wrong; the bank is left at {found['bank']}")
        raise typer.Exit(DamageFoundError.exit_code)
    console.say("nothing was lost, and what was erased is gone")


def tui(
    memories: Annotated[
        int,
        typer.Option("--memories", min=100, metavar="N", help="Memories in the bank that is looked into."),
    ] = 1_000_000,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer repetitions.")] = False,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="NAME|PATH",
            help="Loaded behind the start; none without it.",
            show_default=False,
        ),
    ] = "/none",
    bank: Annotated[
        Path | None,
        typer.Option(
            "--bank", metavar="PATH", help="Look into this one; it is not changed.", show_default=False
        ),
    ] = None,
    namespace: Annotated[str, typer.Option("--namespace", metavar="NAME", help="Of that bank.")] = "default",
    json: Json = False,
) -> None:
    """Measure how soon the screen answers: typing, scrolling, filtering, starting."""
    from mnemos.tui import bench_screen

    console.say("filling a bank, then typing, scrolling and starting ...")
    _show(bench_screen.run(memories, bank, namespace, quick=quick, model=model), json=json)


def _show(measured: Mapping[str, Any], *, json: bool) -> None:
    if json:
        output.document(measured)
    else:
        output.fields(measured)
