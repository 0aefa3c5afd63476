"""`mnemos session ...`: conversations as a whole."""

from typing import Annotated

import typer

from mnemos.errors import NotFoundError, UsageError
from mnemos.tui import completing, console, forms, output, when
from mnemos.tui.forget import DryRun, Yes, show_dry_run, show_plan, show_receipt
from mnemos.tui.options import Bank, Json, Namespace

SessionId = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="A session's id or a prefix of 4 characters or more.",
        autocompletion=completing.session_ids,
    ),
]


def list_sessions(bank: Bank = None, namespace: Namespace = "default", json: Json = False) -> None:
    """List the sessions, latest change first."""
    from mnemos.tui.opening import open_bank

    with open_bank(bank, namespace) as opened:
        found = opened.sessions(namespace)
    if json:
        output.document({"sessions": [forms.session(each) for each in found]})
        return
    rows = [
        (
            output.short_id(each.id),
            when.age_of(each.updated_at),
            each.turns,
            "-" if each.parent_id is None else output.short_id(each.parent_id),
            each.title or "-",
        )
        for each in found
    ]
    output.table(("id", "age", "turns", "parent", "title"), rows, right=("age", "turns"), spare=("parent",))


def rename(
    session_id: SessionId,
    title: Annotated[str, typer.Argument(metavar="TITLE|-", help="The new title; - reads it.")],
    bank: Bank = None,
    namespace: Namespace = "default",
    json: Json = False,
) -> None:
    """Give a session a title."""
    from mnemos.tui.opening import open_bank

    words = console.text_or_stdin(title).strip()
    if not words:
        raise UsageError("the title is empty; the session keeps the one it has")
    with open_bank(bank, namespace) as opened:
        made = opened.rename_session(session_id, words, namespace=namespace)
    if json:
        output.document({"session": forms.session(made)})
    else:
        console.say(f"session {output.short_id(made.id)} has its title")


def branch(
    session_id: SessionId,
    at: Annotated[
        str | None,
        typer.Option(
            "--at",
            metavar="ID",
            help="The last exchange that the branch shares.",
            show_default=False,
            autocompletion=completing.memory_ids,
        ),
    ] = None,
    title: Annotated[
        str | None, typer.Option("--title", metavar="TITLE", help="The branch's title.", show_default=False)
    ] = None,
    bank: Bank = None,
    namespace: Namespace = "default",
    json: Json = False,
) -> None:
    """Begin a new session from another one's past, which is shared and not copied."""
    from mnemos.tui.opening import open_bank

    with open_bank(bank, namespace) as opened:
        made = opened.branch_session(session_id, at=at, title=title, namespace=namespace)
    if json:
        output.document({"session": forms.session(made)})
    else:
        print(made.id)
        console.say(
            f"it begins with {made.turns} turns; `mnemos chat --session {made.id[:8]}` goes on with it"
        )


def delete(
    session_id: SessionId,
    with_memories: Annotated[
        bool, typer.Option("--with-memories", help="Forget what was said in it, for good.")
    ] = False,
    keep_memories: Annotated[
        bool, typer.Option("--keep-memories", help="Its memories stay, and are recalled as before.")
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    bank: Bank = None,
    namespace: Namespace = "default",
    json: Json = False,
) -> None:
    """Delete a session, with its memories or without."""
    from mnemos.tui.opening import open_bank

    if with_memories == keep_memories:
        raise UsageError(
            "say what becomes of its memories: --with-memories forgets them, --keep-memories not"
        )
    with open_bank(bank, namespace) as opened:
        found = opened.get_session(session_id, namespace=namespace)
        plan = opened.plan_forget(namespace=namespace, session_id=found.id) if with_memories else None
        if dry_run:
            if plan is None:
                raise UsageError("--dry-run shows what --with-memories forgets; nothing else is touched")
            show_dry_run(plan, json=json)
            return
        if plan is not None and plan.selected and not yes:
            console.require_person("add --yes to delete the session and what was said in it, or --dry-run")
            show_plan(plan)
            if not console.confirm("Delete the session and forget these for good?"):
                raise NotFoundError("nothing was deleted")
        receipt = opened.delete_session(found.id, with_memories=with_memories, namespace=namespace, plan=plan)
    if json:
        done = None if plan is None or receipt is None else forms.forgotten(plan, receipt)
        output.document({"session": found.id, "forgotten": done})
    elif plan is not None and receipt is not None:
        show_receipt(plan, receipt)
    else:
        console.say(f"session {output.short_id(found.id)} is deleted")
