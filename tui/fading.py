"""`mnemos memory fade`: how much KV a namespace keeps on the disk, and what fades next."""

from typing import Annotated

import typer

from mnemos.tui import console, forms, output
from mnemos.tui.keeping import NONE, bytes_of, read_option
from mnemos.tui.options import Bank, Json, Namespace


def fade(
    keep: Annotated[
        str | None,
        typer.Option(
            "--keep", metavar="SIZE|none", help="At most so much KV: 500MB, 2GB.", show_default=False
        ),
    ] = None,
    once: Annotated[
        str | None,
        typer.Option(
            "--once", metavar="SIZE", help="Fade to so much now, without keeping to it.", show_default=False
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--next", min=0, metavar="N", help="Show what fades next, so many.")
    ] = 0,
    bank: Bank = None,
    namespace: Namespace = "default",
    json: Json = False,
) -> None:
    """Show or set how much KV is kept. What goes beyond fades: found as before, read anew when recalled."""
    from mnemos.tui.opening import open_bank

    change = read_option(keep, bytes_of)
    once_bytes = None if once is None else bytes_of(once)
    faded, given_back = 0, 0
    with open_bank(bank, namespace) as opened:
        if change is not None:
            budget = change[0]
            assert budget is None or isinstance(budget, int)
            done = opened.set_kv_budget(budget, namespace=namespace)
            faded, given_back = len(done.ids), done.bytes
        if once_bytes is not None:
            done = opened.fade(namespace=namespace, budget_bytes=once_bytes)
            faded, given_back = faded + len(done.ids), given_back + done.bytes
        budget = opened.kv_budget(namespace)
        held = opened.stats(namespace)
        following = opened.next_to_fade(namespace, limit=limit) if limit else []
    if json:
        output.document(
            {
                "namespace": namespace,
                "kv_budget_bytes": budget,
                "kv_bytes": held.kv_bytes,
                "vivid": held.vivid,
                "faint": held.faint,
                "faded": faded,
                "bytes_given_back": given_back,
                "next": [forms.memory(memory) for memory in following],
            }
        )
        return
    output.fields(
        {
            "kv_budget_bytes": NONE if budget is None else output.amount(budget),
            "kv_bytes": output.amount(held.kv_bytes),
            "vivid": held.vivid,
            "faint": held.faint,
        }
    )
    if faded:
        console.say(f"{faded} memories faded; {output.size(given_back)} given back")
    if following:
        from mnemos.tui.recollections import show_memories

        show_memories(following)
