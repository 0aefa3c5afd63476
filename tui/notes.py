"""`mnemos remember` and `mnemos ingest`: words go into the bank without a model, durable at once."""

from pathlib import Path
from typing import Annotated

import typer

from mnemos.tui import console, output
from mnemos.tui.options import Bank, Json, Namespace, Tags


def remember(
    text: Annotated[str, typer.Argument(metavar="TEXT|-", help="The words, or - to read standard input.")],
    tags: Tags = None,
    title: Annotated[str | None, typer.Option("--title", help="A title.", show_default=False)] = None,
    bank: Bank = None,
    namespace: Namespace = "default",
    json: Json = False,
) -> None:
    """Remember a text. It is durable when this ends; the model reads it at its next use."""
    from mnemos.tui.opening import open_bank

    words = console.text_or_stdin(text)
    with open_bank(bank, namespace, create=True) as opened:
        memory = opened.remember(words, namespace=namespace, title=title, tags=tags or ())
    if json:
        output.document({"id": memory.id})
    else:
        print(memory.id)


def ingest(
    path: Annotated[
        Path, typer.Argument(metavar="FILE|DIR", help="A text, Markdown or code file, or a directory.")
    ],
    tags: Tags = None,
    bank: Bank = None,
    namespace: Namespace = "default",
    json: Json = False,
) -> None:
    """Remember a file, or a directory's text files, in pieces. Repeating it adds only what is new."""
    from mnemos.tui.opening import open_bank

    if not path.expanduser().exists():
        from mnemos.errors import NotFoundError

        raise NotFoundError(f"no file or directory at {path}")  # before a bank is made for it
    with (
        open_bank(bank, namespace, create=True) as opened,
        console.progress("ingesting", in_bytes=True) as on_progress,
    ):
        from mnemos.memory import ingest as ingesting

        report = ingesting.ingest(opened, path, namespace=namespace, tags=tags or (), on_progress=on_progress)
    for problem in report.problems:
        console.say(f"left out: {problem.reason}")
    if json:
        problems = [{"path": problem.path, "reason": problem.reason} for problem in report.problems]
        output.document(
            {"added": report.added, "skipped": report.skipped, "files": report.files, "problems": problems}
        )
    else:
        print(f"{report.added} memories added, {report.skipped} known already, from {report.files} files")
