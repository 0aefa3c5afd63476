"""Runs an app to its end, and turns what ended it into an exit code."""

import typer

from mnemos.tui.app.base import MemoryApp


def run_app(app: MemoryApp) -> None:
    """Raises what the app failed with, once the terminal is a terminal again."""
    try:
        app.run()
    finally:
        app.is_closing = True
        app.stack.close()
    if app.failure is not None:
        raise app.failure
    if app.return_code:
        raise typer.Exit(app.return_code)
