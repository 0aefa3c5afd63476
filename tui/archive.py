"""`mnemos memory export` and `mnemos memory import`."""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mnemos.errors import NotFoundError, UsageError
from mnemos.tui import console, output, when
from mnemos.tui.options import Bank, Json, Namespace, Session, Since, Source, Tags, Until

if TYPE_CHECKING:
    from mnemos.memory.archive_records import ImportReport
    from mnemos.memory.bank import MemoryBank

PASSPHRASE_VARIABLE = "MNEMOS_ARCHIVE_PASSPHRASE"
SHOWN_PROBLEMS = 20


class Format(StrEnum):
    """What a file holds."""

    AUTO = "auto"
    ARCHIVE = "archive"
    CHATGPT = "chatgpt"
    CLAUDE = "claude"
    JSONL = "jsonl"


def export(
    target: Annotated[
        str, typer.Argument(metavar="FILE|-", help="Where to write the archive, or - for standard output.")
    ],
    everything: Annotated[bool, typer.Option("--all-namespaces", help="Of every namespace.")] = False,
    session: Session = None,
    match: Annotated[
        str | None,
        typer.Option(
            "--match", metavar="TEXT|-", help="Text that it contains, in any case.", show_default=False
        ),
    ] = None,
    tags: Tags = None,
    source: Source = None,
    since: Since = None,
    until: Until = None,
    hidden: Annotated[bool, typer.Option("--include-hidden", help="Hidden ones too.")] = False,
    traces: Annotated[bool, typer.Option("--traces", help="What the model made of them too.")] = False,
    encrypt: Annotated[bool, typer.Option("--encrypt", help="Under a passphrase.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file of that name.")] = False,
    bank: Bank = None,
    namespace: Annotated[
        list[str] | None,
        typer.Option(
            "--namespace",
            envvar="MNEMOS_NAMESPACE",
            metavar="NAME",
            help="Whose memory it is; repeat for several.",
            show_default="default",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Write memories to an archive that `import` reads. It is outside the reach of `forget`."""
    from mnemos.memory.archiving import Chosen
    from mnemos.tui.opening import open_bank
    from mnemos.tui.selecting import source_as_stored

    names = namespace or ["default"]
    if target == "-" and sys.stdout.isatty():
        raise UsageError("an archive is no text for a terminal; name a file, or send it into a pipe")
    if target != "-" and Path(target).expanduser().exists() and not overwrite:
        raise UsageError(f"{target} exists already; choose another name, or add --overwrite")
    passphrase = (
        console.new_passphrase(PASSPHRASE_VARIABLE, "Passphrase for the archive: ") if encrypt else None
    )
    with open_bank(bank, names[0]) as opened, console.progress("exporting") as on_progress:
        chosen = Chosen(
            session_id=_session_id(opened, session, names, everything) if session else None,
            matching=None if match is None else console.text_or_stdin(match),
            tags=tags or None,
            source=source_as_stored(source),
            since=when.since(since),
            until=when.until(until),
            include_hidden=hidden,
        )
        report = opened.export(
            sys.stdout.buffer if target == "-" else target,
            namespaces=None if everything else names,
            chosen=chosen,
            traces=traces,
            passphrase=passphrase,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    if not report.encrypted:
        console.say(
            "warning: the archive is not encrypted: whoever has it can read its words, and `forget` does not "
            "reach it"
        )
    if report.traces_left_out:
        console.say(
            f"{report.traces_left_out} damaged traces were left out; `mnemos bank verify` looks further"
        )
    words = f"{report.memories} memories of {report.namespaces} namespaces, {output.size(report.bytes)}"
    if target == "-":
        console.say(report.model_dump_json() if json else f"exported {words}")
    elif json:
        output.document(report.model_dump(mode="json"))
    else:
        print(f"exported {words}")


def import_(
    source: Annotated[
        str, typer.Argument(metavar="FILE|-", help="An archive, or another program's export; - for a pipe.")
    ],
    format: Annotated[
        Format, typer.Option("--format", help="What the file holds; auto finds out.")
    ] = Format.AUTO,
    into: Annotated[
        str | None,
        typer.Option(
            "--into", metavar="NAME", help="The namespace that all of it goes to.", show_default=False
        ),
    ] = None,
    restore_erased: Annotated[
        bool, typer.Option("--restore-erased", help="Also what was forgotten here.")
    ] = False,
    bank: Bank = None,
    namespace: Namespace = "default",
    json: Json = False,
) -> None:
    """Merge an archive, or conversations of ChatGPT, Claude or a chat log. Repeating it adds nothing."""
    from mnemos.tui.opening import open_bank

    if source != "-" and not Path(source).expanduser().is_file():
        raise NotFoundError(f"no file at {source}")  # before a bank is made for it
    with (
        open_bank(bank, into or namespace, create=True) as opened,
        console.progress("importing", in_bytes=True) as on_progress,
    ):
        report = opened.import_(
            sys.stdin.buffer if source == "-" else source,
            format=format.value,
            into=into,
            default_namespace=namespace,
            passphrase=_known_passphrase,
            restore_erased=restore_erased,
            on_progress=on_progress,
        )
    _say_left_out(report)
    if json:
        output.document(report.model_dump(mode="json"))
    else:
        print(f"{report.added} memories added, {report.known} known already ({report.format})")


def _say_left_out(report: "ImportReport") -> None:
    if report.erased_before:
        console.say(
            f"{report.erased_before} were forgotten here before and were left out; --restore-erased brings "
            "them back"
        )
    if report.replies_withheld:
        console.say(
            f"{report.replies_withheld} replies were made with something that was forgotten here, and were "
            "left out"
        )
    if report.expired:
        console.say(f"{report.expired} have expired and were left out")
    if report.skipped_messages:
        console.say(
            f"{report.skipped_messages} messages of system and tools, or without words, were left out"
        )
    for problem in report.problems[:SHOWN_PROBLEMS]:
        console.say(f"left out: record {problem.record}: {problem.reason}")
    if len(report.problems) > SHOWN_PROBLEMS:
        console.say(f"... and {len(report.problems) - SHOWN_PROBLEMS} more records")


def _session_id(opened: "MemoryBank", prefix: str, names: list[str], everything: bool) -> str:
    """The whole id of the session, in whichever of the namespaces has it."""
    for name in opened.namespaces() if everything else names:
        try:
            return opened.get_session(prefix, namespace=name).id
        except NotFoundError:
            continue
    raise NotFoundError(f"no session of the namespaces has an id that starts with {prefix!r}")


def _known_passphrase() -> str:
    if named := os.environ.get(PASSPHRASE_VARIABLE):
        return named
    console.require_person(f"the archive is encrypted: set {PASSPHRASE_VARIABLE} to its passphrase")
    return console.ask_secret("Passphrase of the archive: ")
