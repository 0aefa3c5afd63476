"""`mnemos memory edit` and `expire`: other words for a memory, and when its time is over."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from mnemos.errors import NotFoundError, UsageError
from mnemos.tui import console, forms, output
from mnemos.tui.forget import Cascade, CascadeOption, DryRun, Yes, show_dry_run, show_plan
from mnemos.tui.options import Bank, Json, MemoryId, Namespace

if TYPE_CHECKING:
    from mnemos.memory.records import Edited


def edit(
    memory_id: MemoryId,
    text: Annotated[
        str, typer.Argument(metavar="TEXT|-", help="The new words, or - to read standard input.")
    ],
    cascade: CascadeOption = Cascade.CLOSURE,
    dry_run: DryRun = False,
    yes: Yes = False,
    bank: Bank = None,
    namespace: Namespace = "default",
    json: Json = False,
) -> None:
    """Put other words in the place of a memory's. The old ones are erased for good, in the same step."""
    from mnemos.tui.opening import open_bank

    if not (dry_run or yes):
        console.require_person("add --yes to edit without being asked, or --dry-run to see the plan")
    words = console.text_or_stdin(text)
    with open_bank(bank, namespace) as opened:
        plan = opened.plan_forget(namespace=namespace, ids=[memory_id], cascade=cascade.value)
        if dry_run:
            show_dry_run(plan, json=json)
            return
        if not yes:
            show_plan(plan)
            if not console.confirm("Forget these words for good, and remember the new ones?"):
                raise NotFoundError("nothing was changed")
        done = opened.edit(plan.selected[0].id, words, namespace=namespace, plan=plan)
    if json:
        output.document(_form(done))
    else:
        print(done.memory.id)
        console.say(f"the old words are forgotten for good; receipt {done.receipt.id}")


def _form(done: "Edited") -> dict[str, object]:
    return {
        "memory": forms.memory(done.memory),
        "rewritten": dict(done.receipt.rewritten),
        "receipt": dict(done.receipt.document),
    }


def expire(
    memory_id: MemoryId,
    at: Annotated[
        str | None,
        typer.Option("--at", metavar="WHEN", help="2027-03-01, or 2027-03-01T18:30.", show_default=False),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option("--in", metavar="AGE", help="From now: 12h, 30d, 2w.", show_default=False),
    ] = None,
    never: Annotated[bool, typer.Option("--never", help="It does not expire.")] = False,
    bank: Bank = None,
    namespace: Namespace = "default",
    json: Json = False,
) -> None:
    """Say when a memory's time is over: nothing recalls it then, and the next sweep erases it."""
    from mnemos.memory import moments
    from mnemos.tui.opening import open_bank

    if [at is not None, after is not None, never].count(True) != 1:
        raise UsageError("say when, with one of --at, --in and --never")
    moment = None
    if at is not None:
        moment = moments.moment(at)
    elif after is not None:
        moment = datetime.now(UTC) + moments.length(after)
    with open_bank(bank, namespace) as opened:
        memory = opened.expire(memory_id, moment, namespace=namespace)
    if json:
        output.document({"memory": forms.memory(memory)})
    else:
        print(memory.id)
