"""`mnemos memory browse`: the inspector of the app, on a bank of its own or of a chat that runs."""

from typing import Annotated

import typer

from mnemos.errors import UsageError
from mnemos.tui.options import Bank, Json, Namespace


def browse(
    filter_text: Annotated[
        str,
        typer.Argument(
            metavar="[FILTER]", help="Words, or a selector as --where takes it.", show_default=False
        ),
    ] = "",
    bank: Bank = None,
    namespace: Namespace = "default",
    json: Json = False,
) -> None:
    """Look through the memory on the whole screen: filter, read, mark, pin, hide, forget."""
    from mnemos.tui.chat import has_screen

    if json or not has_screen():
        raise UsageError("browsing needs a terminal; `mnemos memory list --json` prints memories")
    from mnemos.store.ids import check_namespace
    from mnemos.tui.app.browse import BrowseApp
    from mnemos.tui.app.engine import opener_of
    from mnemos.tui.app.running import run_app

    check_namespace(namespace)
    run_app(BrowseApp(opener_of(bank, namespace, create=False), namespace, filter_text))
