"""`mnemos memory forget`: shows what would go, asks, erases, and shows the receipt."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mnemos.errors import InvalidSelectorError, NotFoundError, UsageError
from mnemos.tui import completing, console, forms, output, when
from mnemos.tui.options import Bank, Json, Model, Namespace, Session, Since, Source, Tags, Until, Where
from mnemos.tui.receipts import check_writable, save

if TYPE_CHECKING:
    from mnemos.memory.bank import MemoryBank
    from mnemos.memory.records import ForgetPlan, Receipt

SHOWN = 10  # memories of a plan that are shown one by one


class Cascade(StrEnum):
    """What happens to replies that were made with a forgotten memory."""

    CLOSURE = "closure"
    NONE = "none"


CascadeOption = Annotated[
    Cascade,
    typer.Option("--cascade", help="closure: replies made with it lose their words too. none: they stay."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]


def forget(
    named: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ID]...",
            help="Memories' ids, or prefixes of them.",
            show_default=False,
            autocompletion=completing.memory_ids,
        ),
    ] = None,
    ids: Annotated[
        list[str] | None,
        typer.Option(
            "--id",
            metavar="ID",
            help="The same; repeatable.",
            show_default=False,
            autocompletion=completing.memory_ids,
        ),
    ] = None,
    match: Annotated[
        str | None,
        typer.Option(
            "--match", metavar="TEXT|-", help="Text that it contains, in any case.", show_default=False
        ),
    ] = None,
    session: Session = None,
    source: Source = None,
    tags: Tags = None,
    since: Since = None,
    until: Until = None,
    where: Where = None,
    everything: Annotated[bool, typer.Option("--all", help="Everything in the namespace.")] = False,
    cascade: CascadeOption = Cascade.CLOSURE,
    dry_run: DryRun = False,
    receipt_file: Annotated[
        Path | None,
        typer.Option("--receipt", metavar="FILE", help="Save the receipt there too.", show_default=False),
    ] = None,
    yes: Yes = False,
    confirm: Annotated[
        str | None,
        typer.Option(
            "--confirm",
            metavar="NAME",
            help="The namespace again, where --yes takes all of it.",
            show_default=False,
        ),
    ] = None,
    model: Model = None,
    bank: Bank = None,
    namespace: Namespace = "default",
    json: Json = False,
) -> None:
    """Erase memories for good. Every selector that is given must match. `hide` is the reversible way."""
    from mnemos.tui import selecting
    from mnemos.tui.opening import open_bank

    ids = [*(named or ()), *(ids or ())]
    texts = (match, where)
    if not (ids or session or source or tags or since or until or everything or texts != (None, None)):
        raise InvalidSelectorError(
            "say what to forget: an id, --match, --session, --source, --tag, --since, --until, --where, --all"
        )
    if texts == ("-", "-"):
        raise UsageError("standard input can be read once: give --match - or --where -, not both")
    if everything and yes and not dry_run and confirm != namespace:
        raise UsageError(f"--all with --yes needs --confirm {namespace}: the namespace's name, once more")
    if receipt_file is not None:
        check_writable(receipt_file)
    if not (dry_run or yes):
        console.require_person("add --yes to forget without being asked, or --dry-run to see the plan")
    condition = selecting.where(where)
    with open_bank(bank, namespace) as opened:
        plan = opened.plan_forget(
            namespace=namespace,
            ids=ids or None,
            matching=None if match is None else console.text_or_stdin(match),
            session_id=opened.get_session(session, namespace=namespace).id if session else None,
            source=selecting.source_as_stored(source),
            tags=tags or None,
            since=when.since(since),
            until=when.until(until),
            where=condition,
            everything=everything,
            cascade=cascade.value,
            model=selecting.model_for(condition, opened, model, namespace),
        )
        show_likes(plan)
        if not plan.selected:
            raise NotFoundError(f"nothing in '{namespace}' matches; nothing was forgotten")
        if dry_run:
            show_dry_run(plan, json=json)
            return
        # Ids were named one by one; conditions that fit everything may not have been meant to.
        by_name = everything or (plan.takes_all and len(plan.selected) > 1 and not ids)
        if yes and by_name and confirm != namespace:
            raise UsageError(
                f"that is every one of the {len(plan.selected)} memories in '{namespace}'; with --yes it "
                f"needs --confirm {namespace}: the namespace's name, once more"
            )
        if not yes:
            show_plan(plan)
            if not is_confirmed(plan, by_name=by_name):
                raise NotFoundError("nothing was forgotten")
        receipt = opened.forget(plan, on_step=None if json else _say_step)
    if receipt_file is not None:
        save(receipt.document, receipt_file)
    if json:
        output.document(forms.forgotten(plan, receipt))
    else:
        show_receipt(plan, receipt)


def show_likes(plan: "ForgetPlan") -> None:
    """What each `like` looked for and found, on stderr: threshold, counts, best score."""
    for like in plan.likes:
        best = "" if like.best is None else f", the best at {like.best:.2f}"
        console.say(
            f"like: {len(like.hits)} of {like.scored} memories score {like.threshold:.2f} or more{best}"
        )
        if like.unscored:
            console.say(f"  {like.unscored} could not be scored: the model has not read them yet")


def scores_of(plan: "ForgetPlan") -> dict[str, str]:
    """The best score of each memory that a `like` found, by id."""
    best: dict[str, float] = {}
    for hit in (hit for like in plan.likes for hit in like.hits):
        best[hit.id] = max(hit.score, best.get(hit.id, hit.score))
    return {memory_id: f"{score:.2f}" for memory_id, score in best.items()}


def show_dry_run(plan: "ForgetPlan", *, json: bool) -> None:
    if json:
        output.document(forms.plan(plan))
        return
    from mnemos.tui.recollections import one_line

    memories = [("forget", memory) for memory in plan.selected]
    memories += [(_fate(plan), memory) for memory in plan.dependants]
    if plan.likes:
        scores = scores_of(plan)
        output.table(
            ("what", "score", "id", "text"),
            [(what, scores.get(m.id, "-"), output.short_id(m.id), one_line(m)) for what, m in memories],
            right=("score",),
        )
    else:
        output.table(
            ("what", "id", "text"), [(what, output.short_id(m.id), one_line(m)) for what, m in memories]
        )
    console.say(f"{summary(plan)}; nothing was touched")


def show_plan(plan: "ForgetPlan") -> None:
    """The plan on stderr: the first memories one by one, then counts and bytes."""
    from mnemos.tui.recollections import one_line

    shown = [("forget", memory) for memory in plan.selected] + [
        (_fate(plan), memory) for memory in plan.dependants
    ]
    scores = scores_of(plan)
    for what, memory in shown[:SHOWN]:
        score = f"{scores.get(memory.id, '-'):>6}  " if plan.likes else ""
        console.say(f"  {what}  {memory.id[: output.SHORT_ID]}  {score}{one_line(memory)[:80]}")
    if len(shown) > SHOWN:
        console.say(f"  ... and {len(shown) - SHOWN} more")
    console.say(summary(plan))
    if plan.takes_all and len(plan.selected) > 1:
        console.say(f"that is every memory in '{plan.namespace}'")


def _fate(plan: "ForgetPlan") -> str:
    return "erase reply" if plan.cascade == "closure" else "keep reply"


def summary(plan: "ForgetPlan") -> str:
    """Counts and bytes of a plan, in words."""
    words = f"{_count(len(plan.selected), 'memory', 'memories')}, {output.size(plan.bytes_on_disk)} on disk"
    if not plan.dependants:
        return words
    replies = _count(len(plan.dependants), "reply made with it", "replies made with them")
    return f"{words}, and {replies}" + ("" if plan.cascade == "closure" else ", which stay")


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


def is_confirmed(plan: "ForgetPlan", *, by_name: bool) -> bool:
    """Whether the person agrees; for a whole namespace, by typing its name."""
    if by_name:
        return (
            console.ask(f"Type the namespace's name ({plan.namespace}) to forget all of it: ")
            == plan.namespace
        )
    return console.confirm("Forget for good?")


def _say_step(step: str) -> None:
    console.say(f"  {step}")


def show_receipt(plan: "ForgetPlan", receipt: "Receipt") -> None:
    print(f"forgotten: {summary(plan)}")
    print(f"receipt: {receipt.id}")


def forget_matching(opened: "MemoryBank", namespace: str, text: str, *, yes: bool) -> None:
    """The chat's `/forget TEXT`: plan, question, erase, receipt."""
    if not yes:
        console.require_person("write /forget --yes TEXT to forget without being asked")
    plan = opened.plan_forget(namespace=namespace, matching=text)
    if not plan.selected:
        console.say("nothing matches; nothing was forgotten")
        return
    show_plan(plan)
    if yes or is_confirmed(plan, by_name=False):
        receipt = opened.forget(plan)
        console.say(f"forgotten for good; receipt {receipt.id}")
    else:
        console.say("nothing was forgotten")
