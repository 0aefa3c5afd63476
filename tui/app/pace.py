"""Keys before everything else: a letter is painted as soon as its widget took it, and what streams in waits.

Textual paints at most every sixtieth of a second, whoever waits for it, and lays out whenever it is asked to.
"""

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Any

from textual import events
from textual.geometry import Size
from textual.screen import Screen

_LATE_S = 0.15  # a key that changed nothing to see
_TYPING_S = 0.4  # between two keys of somebody who types
_PAUSE_S = 0.2  # of rest before a search goes on
_MOST_S = 0.3  # that work waits for a better moment


class Pace:
    """Knows whether a key waits for its paint, and when other work is least in its way: right after one.

    Mixed into an app.
    """

    _keyed_at = _painted_at = float("-inf")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._put_off: dict[asyncio.TimerHandle, tuple[float, Callable[[], None]]] = {}

    async def on_event(self, event: events.Event) -> None:
        if isinstance(event, events.Key | events.Paste):
            self._keyed_at = perf_counter()
        await super().on_event(event)  # type: ignore[misc]

    @property
    def is_answering(self) -> bool:
        """Whether a key came whose letter is not on the screen yet."""
        return self._keyed_at > self._painted_at and perf_counter() - self._keyed_at < _LATE_S

    @property
    def is_typing(self) -> bool:
        """Whether a key came just now, so that another may follow: what can wait does."""
        return perf_counter() - self._keyed_at < _PAUSE_S

    def answered(self) -> None:
        """The screen shows what the latest key did: a moment for what was put off."""
        self._painted_at = perf_counter()
        for handle, (due, action) in list(self._put_off.items()):
            if due <= self._painted_at:
                self._cancel(handle)
                asyncio.get_running_loop().call_soon(action)

    def put_off(self, action: Callable[[], None], seconds: float) -> Callable[[], None]:
        """Do it in so many seconds; while somebody types, behind a letter. Returns what cancels it."""
        loop = asyncio.get_running_loop()
        due = perf_counter() + seconds
        handles: list[asyncio.TimerHandle] = []

        def wait(seconds: float) -> None:
            handles[:] = [loop.call_later(seconds, act)]
            self._put_off[handles[0]] = (due, action)

        def act() -> None:
            self._cancel(handles[0])
            now = perf_counter()
            is_typing = now - self._keyed_at < _TYPING_S
            if is_typing and now - due < _MOST_S:
                wait(_MOST_S - (now - due))
            else:
                action()

        wait(seconds)
        return lambda: self._cancel(handles[0])

    def _cancel(self, handle: asyncio.TimerHandle) -> None:
        handle.cancel()
        self._put_off.pop(handle, None)


class SizedOnce:
    """Grows without a second layout: Textual asks for one whenever a layout changed a size.

    Mixed into a widget, and none itself: Textual inherits CSS from the first base that is one.
    """

    virtual_size: Any

    def _size_updated(
        self, size: Size, virtual_size: Size, container_size: Size, layout: bool = True
    ) -> bool:
        has_grown = virtual_size != self.virtual_size
        is_changed: bool = super()._size_updated(  # type: ignore[misc]
            size, virtual_size, container_size, layout=False
        )
        if has_grown and layout:
            self.has_grown()
        return is_changed

    def has_grown(self) -> None:
        """What it holds has another size."""


class PromptScreen(Screen[None]):
    """A screen that paints at once what a key changed, and what was read for it."""

    _is_urgent = False

    def hasten(self) -> None:
        """Paint the next change at once: somebody waits for it."""
        self._is_urgent = True

    async def _on_idle(self, event: events.Idle) -> None:
        app = self.app
        assert isinstance(app, Pace)
        if app._batch_count or not self.is_current or not (self._is_urgent or app.is_answering):
            await super()._on_idle(event)
            return
        event.prevent_default()
        is_seen = self._layout_required or self._repaint_required or self.focused in self._dirty_widgets
        if is_seen or (self._is_urgent and self._dirty_widgets):
            self._is_urgent = False
            self._on_timer_update()
            app.answered()
        elif self._dirty_widgets or self._scroll_required or self._recompose_required:
            self._update_timer.resume()
        else:
            await self._invoke_and_clear_callbacks()
