"""Keys before everything else: a letter is painted as soon as its widget took it, and what streams in waits.

Textual paints at most every sixtieth of a second, whoever waits for it.
"""

from time import perf_counter
from typing import Any

from textual import events
from textual.screen import Screen

_LATE_S = 0.15  # a key that changed nothing to see


class Pace:
    """Knows whether a key waits for its paint. Mixed into an app."""

    keyed_at = painted_at = float("-inf")

    async def on_event(self, event: events.Event) -> None:
        if isinstance(event, events.Key | events.Paste):
            self.keyed_at = perf_counter()
        await super().on_event(event)  # type: ignore[misc]


def is_answering(app: Any) -> bool:
    """Whether a key came whose letter is not on the screen yet."""
    keyed_at: float = getattr(app, "keyed_at", float("-inf"))
    return keyed_at > app.painted_at and perf_counter() - keyed_at < _LATE_S


class PromptScreen(Screen[None]):
    """A screen that paints at once what a key changed."""

    async def _on_idle(self, event: events.Idle) -> None:
        if is_answering(self.app) and not self.app._batch_count and self.is_current:
            focused = self.focused
            if self._layout_required or self._repaint_required or focused in self._dirty_widgets:
                event.prevent_default()
                self._on_timer_update()
                self.app.painted_at = perf_counter()  # type: ignore[attr-defined]
        else:
            await super()._on_idle(event)
