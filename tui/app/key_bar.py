"""The keys that apply now, as one line. Textual's Footer makes a widget for each, at every focus."""

from typing import ClassVar, NamedTuple

from rich.segment import Segment
from textual import events
from textual.screen import Screen
from textual.strip import Strip
from textual.widget import Widget


class Offer(NamedTuple):
    """A key and what it does."""

    key: str
    shown: str
    does: str

    @property
    def cells(self) -> int:
        return len(self.shown) + len(self.does) + 2


class KeyBar(Widget):
    """What the screen's bindings offer, as many as there is room for; a click presses the key."""

    ALLOW_SELECT = False
    COMPONENT_CLASSES: ClassVar[set[str]] = {"key-bar--key", "key-bar--does", "key-bar--rule"}
    DEFAULT_CSS = """
    KeyBar { dock: bottom; height: 1; }
    KeyBar > .key-bar--key { color: $footer-key-foreground; text-style: bold; }
    KeyBar > .key-bar--does { color: $footer-description-foreground; }
    KeyBar > .key-bar--rule { color: $foreground 20%; }
    """

    def __init__(self, *, has_palette: bool = True) -> None:
        super().__init__()
        self._has_palette = has_palette
        self._offers: tuple[Offer, ...] = ()
        self._palette: Offer | None = None
        self._ends: list[tuple[int, int, Offer]] = []  # columns of what is drawn

    def on_mount(self) -> None:
        self.screen.bindings_updated_signal.subscribe(self, self._changed)

    def _changed(self, screen: Screen[object]) -> None:
        if not self.is_attached or screen is not self.screen or not self.app.app_focus:
            return
        offers: dict[str, Offer] = {}
        palette: Offer | None = None
        for _, binding, enabled, _ in screen.active_bindings.values():
            offer = Offer(binding.key, self.app.get_key_display(binding), binding.description)
            if binding.show and enabled:
                offers.setdefault(binding.action, offer)
            if binding.key == self.app.COMMAND_PALETTE_BINDING and self._has_palette:
                palette = offer
        if (tuple(offers.values()), palette) != (self._offers, self._palette):
            self._offers, self._palette = tuple(offers.values()), palette
            self.refresh()

    def render_line(self, y: int) -> Strip:
        width, base = self.size.width, self.rich_style
        key, does = (self.get_component_rich_style(f"key-bar--{name}") for name in ("key", "does"))
        palette = self._palette if self._palette and not self.screen.has_class("-narrow") else None
        room = width - (palette.cells if palette else 0)
        segments: list[Segment] = []
        self._ends.clear()
        at = 0
        for offer in self._offers:
            if at + offer.cells - 1 > room:
                break
            segments += [Segment(f"{offer.shown} ", key), Segment(f"{offer.does} ", does)]
            self._ends.append((at, at + offer.cells, offer))
            at += offer.cells
        if palette:
            rule = self.get_component_rich_style("key-bar--rule")
            segments += [Segment(" " * (room - at), base), Segment("▏", rule)]
            segments += [Segment(f"{palette.shown} ", key), Segment(palette.does, does)]
            self._ends.append((room, width, palette))
        return Strip(segments).adjust_cell_length(width, base)

    def on_click(self, event: events.Click) -> None:
        for start, end, offer in self._ends:
            if start <= event.x < end:
                self.app.simulate_key(offer.key)
