"""`mnemos help`: the manual, a section at a time."""

import re
import sys
from importlib.resources import files
from typing import Annotated

import typer

from mnemos.errors import NotFoundError
from mnemos.tui import output
from mnemos.tui.options import Json, UnusedBank, UnusedNamespace

_HEADING = re.compile(r"^(##+) (.*)$", re.M)


def help_(
    topic: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TOPIC]", help="A command or a heading; the list without.", show_default=False
        ),
    ] = None,
    bank: UnusedBank = None,
    namespace: UnusedNamespace = "default",
    json: Json = False,
) -> None:
    """Read the manual: `mnemos help selectors`, `mnemos help memory forget`."""
    sections = manual()
    if not topic:
        names = [title for title, _ in sections]
        if json:
            output.document({"topics": names})
        else:
            output.text("\n".join(names), end="\n")
        return
    title, words = find(sections, " ".join(topic))
    if json:
        output.document({"topic": title, "text": words})
    else:
        _show(f"## {title}\n\n{words}")


def manual() -> list[tuple[str, str]]:
    """Title and text of each section, in their order. A command's title is its name alone."""
    text = files("mnemos.tui").joinpath("manual.md").read_text("utf-8")
    found = list(_HEADING.finditer(text))
    ends = [*(match.start() for match in found[1:]), len(text)]
    return [
        (_title(match[2]), text[match.end() : end].strip()) for match, end in zip(found, ends, strict=True)
    ]


def find(sections: list[tuple[str, str]], wanted: str) -> tuple[str, str]:
    """The section that a topic names: by its whole title, else by the only one that has all its words.

    Raises NotFoundError with those that come near.
    """
    words = wanted.casefold().removeprefix("mnemos ").split()
    for title, text in sections:
        if title.casefold().split() == words:
            return title, text or _below(sections, title)
    near = [(title, text) for title, text in sections if all(word in title.casefold() for word in words)]
    if len(near) == 1:
        return near[0]
    names = ", ".join(title for title, _ in near) or "`mnemos help` lists them all"
    raise NotFoundError(f"{'more than one topic has' if near else 'no topic has'} {wanted!r}: {names}")


def _below(sections: list[tuple[str, str]], title: str) -> str:
    """What stands under a heading without words of its own: the title of the section after it."""
    names = [each for each, _ in sections]
    return f"See `{names[names.index(title) + 1]}` and what follows it in `mnemos help`."


def _title(heading: str) -> str:
    command = re.fullmatch(r"`mnemos ([a-z ]+?)(?: \[?[A-Z].*)?`", heading)
    return command[1] if command else heading


def _show(markdown: str) -> None:
    if not sys.stdout.isatty():
        output.text(markdown, end="\n")
        return
    from rich.console import Console
    from rich.markdown import Markdown

    console, shown = Console(), Markdown(markdown)
    if len(console.render_lines(shown)) < console.height:
        console.print(shown)
    else:
        with console.pager(styles=True):
            console.print(shown)
