"""`mnemos bank ...`: what a bank is, and whether it is sound."""

from typing import Annotated

import typer

from mnemos.errors import UsageError
from mnemos.tui import console, forms, output
from mnemos.tui.options import Bank, Json, Model, Namespace


def info(bank: Bank = None, namespace: Namespace = "default", json: Json = False) -> None:
    """Say where the bank and its key are, and what it holds."""
    from mnemos.tui.opening import open_bank

    with open_bank(bank, namespace) as opened:
        stats = opened.stats().model_dump(mode="json")
        namespaces = opened.namespaces()
        found = {
            "path": str(opened.path),
            "id": opened.bank_id,
            "encrypted": opened.encrypted,
            "key": opened.key_location,
            "receipt_key": opened.public_key,
        }
    if json:
        output.document(found | {"namespaces": namespaces, "stats": stats})
        return
    counts = {name: stats[name] for name in ("memories", "hidden", "pending", "tokens")}
    sizes = {name: output.amount(stats[name]) for name in ("text_bytes", "trace_bytes", "disk_bytes")}
    output.fields(found | {"namespaces": ", ".join(namespaces)} | counts | sizes)
    if found["encrypted"]:
        console.say("back up the key: without it the bank can't be read")
    else:
        console.say("the bank is not encrypted: whoever reads its files reads the memories")


def verify(
    deep: Annotated[bool, typer.Option("--deep", help="Decrypt and scan every file as well.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what can be mended, and verify to the last frame.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where a verify of the same depth was cut off.")
    ] = False,
    bank: Bank = None,
    namespace: Namespace = "default",
    json: Json = False,
) -> None:
    """Check the bank against itself. Exit code 4 when it finds damage."""
    from mnemos.errors import DamageFoundError
    from mnemos.tui.opening import open_bank

    if repair and resume:
        raise UsageError("--repair looks at everything; leave --resume out")
    with open_bank(bank, namespace) as opened, console.progress("verifying") as on_progress:
        if repair:
            done = opened.repair(progress=on_progress)
            report, form = done.after, forms.repair(done)
        else:
            report = opened.verify(deep=deep, progress=on_progress, resume=resume)
            form = forms.verify(report)
    if json:
        output.document(form)
    else:
        mended = [
            ("repaired " + each["kind"], each["subject"], each["detail"]) for each in form.get("repaired", ())
        ]
        left = [(each.kind, each.subject, each.detail) for each in (*report.problems, *report.quarantined)]
        output.table(("kind", "subject", "detail"), [*mended, *left])
    if report.quarantined:
        console.say(f"{len(report.quarantined)} memories are in quarantine: their words are lost")
    if report.ok:
        console.say("the bank is sound")
        return
    message = f"{len(report.problems)} problems in the bank"
    if json:
        console.say(f"error: {message}")
        raise typer.Exit(DamageFoundError.exit_code)
    raise DamageFoundError(message)


def compact(
    min_dead: Annotated[
        float, typer.Option("--min-dead", metavar="SHARE", help="Share of dead bytes that is enough.")
    ] = 0.25,
    max_mib: Annotated[
        int | None, typer.Option("--max-mib", metavar="N", help="Stop after moving about so many MiB.", min=1)
    ] = None,
    bank: Bank = None,
    namespace: Namespace = "default",
    json: Json = False,
) -> None:
    """Give the space of erased and superseded memories back to the disk."""
    from dataclasses import asdict

    from mnemos.tui.opening import open_bank

    budget = None if max_mib is None else max_mib << 20
    with open_bank(bank, namespace) as opened, console.progress("compacting", in_bytes=True) as on_progress:
        report = opened.compact(min_dead_share=min_dead, max_bytes=budget, on_progress=on_progress)
    if json:
        output.document(asdict(report))
    else:
        console.say(
            f"{output.amount(report.bytes_before)} of segments are {output.amount(report.bytes_after)} now: "
            f"{report.segments_removed} removed, {report.frames_moved} frames moved"
        )
    if not report.is_finished:
        console.say("the budget ran out before the work: run it again to go on")
    if report.frames_left:
        console.say(f"{report.frames_left} damaged frames were left where they are: run `mnemos bank verify`")


def reencode(
    model: Model = None, bank: Bank = None, namespace: Namespace = "default", json: Json = False
) -> None:
    """Make every trace again from the text, with another model. The bank belongs to that model afterwards."""
    from mnemos.tui.opening import load_model, open_bank

    with open_bank(bank, namespace) as opened, console.progress("encoding") as on_progress:
        loaded = load_model(model)
        made = opened.reencode(loaded, on_progress=on_progress)
    if json:
        output.document({"model": loaded.name, "encoded": made})
    else:
        console.say(f"{made} memories are encoded by {loaded.name} now")
