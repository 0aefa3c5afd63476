"""Where the `mnemos` script begins."""

import sys


def main() -> None:
    """The entry point: the screen of `mnemos chat` does not wait for the other commands to be read."""
    if sys.argv[1:2] == ["chat"]:
        from mnemos.tui.console import run
        from mnemos.tui.root import new_app

        sys.exit(run(new_app(), sys.argv[1:]))
    from mnemos.tui import main as tree

    tree.main()
