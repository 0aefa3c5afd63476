"""The `mnemos` command before its commands: what is said of it, its own options, and `chat`."""

from typing import Annotated

import typer

from mnemos.tui import chat, console


def _print_version(wanted: bool) -> None:
    if wanted:
        from mnemos import __version__

        print(f"mnemos {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Say nothing on stderr but errors and questions.")
    ] = False,
) -> None:
    """An agent that remembers, shows what it remembers, and forgets for good."""
    console.is_quiet = quiet


def new_app() -> typer.Typer:
    """`mnemos` with `chat` alone."""
    app = typer.Typer(
        name="mnemos",
        help="An agent that remembers, shows what it remembers, and forgets for good.",
        no_args_is_help=True,
        # Plain help: rendering it with rich would double the time of `mnemos --help`.
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    app.command("chat")(chat.chat)
    return app
