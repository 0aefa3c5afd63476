"""`mnemos bank audit`: who erased, rekeyed or repaired, and when."""

from typing import Annotated

import typer

from mnemos.tui import output
from mnemos.tui.options import Bank, Json, Jsonl, Namespace


def audit(
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, metavar="N", help="Only the latest so many.", show_default=False),
    ] = None,
    bank: Bank = None,
    namespace: Namespace = "default",
    json: Json = False,
    jsonl: Jsonl = False,
) -> None:
    """Show the audit log, oldest first. `bank verify` checks its chain."""
    from mnemos.tui.opening import open_bank

    with open_bank(bank, namespace) as opened:
        lines = list(opened.audit())
    if limit is not None:
        lines = lines[-limit:]
    if json or jsonl:
        forms = [line.model_dump(mode="json") for line in lines]
        output.lines(forms) if jsonl else output.document({"audit": forms})
        return
    output.table(
        ("line", "when", "actor", "user", "action", "count", "subject"),
        [
            (
                line.seq,
                line.at.isoformat(timespec="seconds"),
                line.actor,
                line.user or "",
                line.action,
                line.count,
                line.subject,
            )
            for line in lines
        ],
        right=("line", "count"),
    )
