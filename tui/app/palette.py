"""The command palette: everything that the app can do, by name."""

from functools import partial
from typing import TYPE_CHECKING

from textual.command import DiscoveryHit, Hit, Hits, Provider

if TYPE_CHECKING:
    from mnemos.tui.app.base import MemoryApp


class Commands(Provider):
    """The app's own list of actions."""

    @property
    def _app(self) -> "MemoryApp":
        return self.app  # type: ignore[return-value]

    async def discover(self) -> Hits:
        for title, (what, action) in self._app.actions().items():
            yield DiscoveryHit(title, partial(self._app.run_action, action), help=what)

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for title, (what, action) in self._app.actions().items():
            if (score := matcher.match(f"{title} {what}")) > 0:
                yield Hit(score, matcher.highlight(title), partial(self._app.run_action, action), help=what)
