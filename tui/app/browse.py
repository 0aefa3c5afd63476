"""`BrowseApp`: the inspector alone, without a model."""

from collections.abc import Mapping

from textual.app import ComposeResult
from textual.widgets import Static

from mnemos.tui.app.base import BankReady, MemoryApp
from mnemos.tui.app.engine import Opener
from mnemos.tui.app.inspector import Inspector


class BrowseApp(MemoryApp):
    """The inspector on the whole screen, once the bank is open."""

    def __init__(self, opener: Opener, namespace: str, filter_text: str = "") -> None:
        super().__init__(opener, namespace)
        self._filter = filter_text

    def compose(self) -> ComposeResult:
        yield Static("opening the bank", id="top")

    def on_bank_ready(self, _event: BankReady) -> None:
        self.push_screen(Inspector(self._filter))

    def actions(self) -> Mapping[str, tuple[str, str]]:
        return super().actions()
