"""`mnemos memory retention` and `sweep`: how much a namespace keeps, and erasing what is beyond that."""

import re
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from mnemos.errors import NotFoundError, UsageError
from mnemos.tui import console, forms, output
from mnemos.tui.forget import DryRun, Yes, show_dry_run, show_plan, summary
from mnemos.tui.options import Bank, Json, Namespace

if TYPE_CHECKING:
    from mnemos.store.retention import Retention

_SIZE = re.compile(r"^(\d{1,15})\s*([kmgt]?b?)$", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
NONE = "none"


def retention(
    max_age: Annotated[
        str | None,
        typer.Option("--max-age", metavar="AGE|none", help="Keep for so long: 90d, 52w.", show_default=False),
    ] = None,
    max_bytes: Annotated[
        str | None,
        typer.Option(
            "--max-bytes", metavar="SIZE|none", help="Keep so much: 500MB, 2GB.", show_default=False
        ),
    ] = None,
    max_memories: Annotated[
        str | None,
        typer.Option("--max-memories", metavar="N|none", help="Keep so many.", show_default=False),
    ] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    bank: Bank = None,
    namespace: Namespace = "default",
    json: Json = False,
) -> None:
    """Show or set how much the namespace keeps. Later openings of the bank erase what is beyond that."""
    from mnemos.store.retention import Retention, check_retention
    from mnemos.tui.opening import open_bank

    changes = {
        "max_age": read_option(max_age, _age),
        "max_bytes": read_option(max_bytes, bytes_of),
        "max_memories": read_option(max_memories, number_of),
    }
    given = {name: value[0] for name, value in changes.items() if value is not None}
    with open_bank(bank, namespace, sweep=False) as opened:
        known = opened.retention(namespace) if namespace in opened.namespaces() else Retention()
        if not given:
            _show(namespace, known, json=json)
            return
        held = {name: getattr(known, name) for name in changes}
        limits = Retention(**(held | given))
        check_retention(limits)
        if namespace in opened.namespaces():
            plan = opened.plan_sweep(namespace, limits=limits)
            if dry_run:
                show_dry_run(plan, json=json)
                return
            if plan.selected and not yes:
                console.require_person("add --yes to set limits that some memories are beyond, or --dry-run")
                show_plan(plan)
                if not console.confirm("Keep no more than that, and forget these for good?"):
                    raise NotFoundError("the limits were not changed")
        elif dry_run:
            raise NotFoundError(f"the bank has no namespace '{namespace}', so nothing is beyond any limit")
        opened.set_retention(
            namespace,
            max_age=limits.max_age,
            max_bytes=limits.max_bytes,
            max_memories=limits.max_memories,
        )
        opened.sweep(namespace)
    _show(namespace, limits, json=json)


def sweep(
    dry_run: DryRun = False, bank: Bank = None, namespace: Namespace = "default", json: Json = False
) -> None:
    """Erase what has expired, or is beyond what the namespace keeps. Opening a bank does so too."""
    from mnemos.tui.opening import open_bank

    with open_bank(bank, namespace, sweep=False) as opened:
        plan = opened.plan_sweep(namespace)
        if dry_run:
            show_dry_run(plan, json=json)
            return
        receipt = opened.forget(plan) if plan.selected else None
    if json:
        output.document(
            forms.forgotten(plan, receipt)
            if receipt is not None
            else {"forgotten": [], "dependants": [], "receipt": None}
        )
    elif receipt is None:
        console.say("nothing has expired, and nothing is beyond what is kept")
    else:
        print(f"forgotten: {summary(plan)}")
        print(f"receipt: {receipt.id}")


def _show(namespace: str, limits: "Retention", *, json: bool) -> None:
    age_s = None if limits.max_age is None else limits.max_age.total_seconds()
    values = {"max_age_s": age_s, "max_bytes": limits.max_bytes, "max_memories": limits.max_memories}
    if json:
        output.document({"namespace": namespace, **values})
        return
    shown = values | {"max_age": limits.max_age}
    del shown["max_age_s"]
    output.fields({name: NONE if value is None else value for name, value in sorted(shown.items())})


def read_option(text: str | None, parse: Callable[[str], object]) -> tuple[object] | None:
    """What an option says, in a tuple of one; None when it is not given."""
    if text is None:
        return None
    return (None,) if text.strip().lower() == NONE else (parse(text.strip()),)


def _age(text: str) -> timedelta:
    from mnemos.memory.moments import length

    return length(text)


def bytes_of(text: str) -> int:
    size = _SIZE.match(text)
    if size is None:
        raise UsageError(f"'{text}' is no size; write 500MB, 2GB, or a number of bytes")
    return int(size[1]) * _UNITS[size[2].lower().rstrip("b")]


def number_of(text: str) -> int:
    if not re.fullmatch(r"\d{1,15}", text):
        raise UsageError(f"'{text}' is no number of memories")
    return int(text)
