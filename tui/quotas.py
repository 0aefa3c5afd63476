"""`mnemos memory quota`: how much a namespace may hold before new memories are turned down."""

from dataclasses import asdict
from typing import Annotated

import typer

from mnemos.tui import output
from mnemos.tui.keeping import NONE, bytes_of, number_of, read_option
from mnemos.tui.options import Bank, Json, Namespace


def quota(
    max_memories: Annotated[
        str | None,
        typer.Option("--memories", metavar="N|none", help="At most so many memories.", show_default=False),
    ] = None,
    max_bytes: Annotated[
        str | None,
        typer.Option("--text", metavar="SIZE|none", help="At most so much text: 50MB.", show_default=False),
    ] = None,
    turns: Annotated[
        str | None,
        typer.Option(
            "--turns-per-day", metavar="N|none", help="At most so many turns in 24 hours.", show_default=False
        ),
    ] = None,
    bank: Bank = None,
    namespace: Namespace = "default",
    json: Json = False,
) -> None:
    """Show or set how much the namespace may hold. What goes beyond is turned down; nothing is erased."""
    from mnemos.store.quotas import Quota
    from mnemos.tui.opening import open_bank

    changes = {
        "memories": read_option(max_memories, number_of),
        "text_bytes": read_option(max_bytes, bytes_of),
        "turns_per_day": read_option(turns, number_of),
    }
    given = {name: value[0] for name, value in changes.items() if value is not None}
    with open_bank(bank, namespace) as opened:
        limits = opened.quota(namespace)
        if given:
            limits = Quota(**{**asdict(limits), **given})
            opened.set_quota(namespace, **asdict(limits))
    if json:
        output.document({"namespace": namespace, **asdict(limits)})
    else:
        output.fields({name: NONE if value is None else value for name, value in asdict(limits).items()})
