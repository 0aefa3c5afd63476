"""Options that many commands share, so that they are named and explained once."""

from pathlib import Path
from typing import Annotated

import typer

from mnemos.tui import completing

Bank = Annotated[
    Path | None,
    typer.Option(
        "--bank",
        envvar="MNEMOS_BANK",
        metavar="PATH",
        help="The memory bank's directory.",
        show_default=False,
    ),
]
Namespace = Annotated[
    str,
    typer.Option(
        "--namespace",
        envvar="MNEMOS_NAMESPACE",
        metavar="NAME",
        help="Whose memory it is.",
        autocompletion=completing.namespaces,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Jsonl = Annotated[bool, typer.Option("--jsonl", help="Print one JSON object a line.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        envvar="MNEMOS_MODEL",
        metavar="NAME|PATH",
        help="A known model, a .gguf file or a model directory.",
        show_default=False,
    ),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        "--max-tokens",
        envvar="MNEMOS_MAX_TOKENS",
        min=1,
        metavar="N",
        help="A reply's longest length.",
        show_default=False,
    ),
]
Session = Annotated[
    str | None,
    typer.Option(
        "--session",
        metavar="ID",
        help="A session's id or a prefix of it.",
        show_default=False,
        autocompletion=completing.session_ids,
    ),
]
Source = Annotated[
    str | None,
    typer.Option("--source", metavar="PATH", help="The file it was ingested from.", show_default=False),
]
Tags = Annotated[
    list[str] | None,
    typer.Option(
        "--tag",
        metavar="TAG",
        help="A tag; repeat for several, all must match.",
        show_default=False,
        autocompletion=completing.tags,
    ),
]
Since = Annotated[
    str | None,
    typer.Option("--since", metavar="WHEN", help="2026-03-01, or 3d, 2w, 12h ago.", show_default=False),
]
Until = Annotated[
    str | None,
    typer.Option(
        "--until", metavar="WHEN", help="As --since; a date's whole day counts.", show_default=False
    ),
]
Where = Annotated[
    str | None,
    typer.Option(
        "--where",
        metavar="SELECTOR|-",
        help='Conditions joined with and, or, not: tag:work and not match:"Clara".',
        show_default=False,
    ),
]
Limit = Annotated[int, typer.Option("--limit", min=1, metavar="N", help="At most so many.")]
OverwritePicture = Annotated[bool, typer.Option("--overwrite", help="Replace a picture of that name.")]
KeptBanks = Annotated[
    Path | None,
    typer.Option(
        "--path",
        metavar="PATH",
        help="Make the banks there and leave them; what is there isn't read again.",
        show_default=False,
    ),
]
HeldOut = Annotated[
    list[Path] | None,
    typer.Option(
        "--held-out",
        metavar="FILE",
        help="Conversations to measure by; one of four of --data without.",
        show_default=False,
    ),
]
MemoryId = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="A memory's id or a prefix of 4 characters or more.",
        autocompletion=completing.memory_ids,
    ),
]

# For commands that need no bank: accepted like everywhere, so that scripts can pass them to every command.
UnusedBank = Annotated[Path | None, typer.Option("--bank", envvar="MNEMOS_BANK", metavar="PATH", hidden=True)]
UnusedNamespace = Annotated[
    str, typer.Option("--namespace", envvar="MNEMOS_NAMESPACE", metavar="NAME", hidden=True)
]
