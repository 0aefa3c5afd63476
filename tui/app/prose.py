"""A Markdown text as one widget that draws its own lines, and grows without laying out the rest again."""

from collections.abc import Callable
from time import perf_counter

from rich.segment import Segment
from textual.geometry import Region, Size
from textual.selection import Selection
from textual.strip import Strip
from textual.style import Style
from textual.widget import Widget

from mnemos.tui.app.pace import Pace, SizedOnce
from mnemos.tui.app.typeset import Typeset

_EVERY_S = 0.06  # between two drawings of what came in
_SHARE = 12  # times as long as one took: more rest where the end of a text takes long
_MOST_S = 0.8


class Prose(SizedOnce, Widget):
    """Markdown to read; the mouse selects in it."""

    DEFAULT_CSS = "Prose { height: auto; width: 1fr; }"

    def __init__(self, text: str = "", *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._set = Typeset(text)
        self._strips: dict[int, Strip] = {}
        self._pending: list[str] = []
        self._cancel: Callable[[], None] | None = None  # what is going to draw
        self._took_s = 0.0
        self._is_there = False

    @property
    def text(self) -> str:
        """All of it, what is not drawn yet as well."""
        return self._set.text + "".join(self._pending)

    def update(self, text: str) -> None:
        """Another text, all of it."""
        self._stop()
        self._pending.clear()
        if text != self._set.text or self._set.is_growing:
            self._set.set(text)
            self._strips.clear()
            self.refresh(layout=True)

    def add(self, piece: str) -> None:
        """More text: it shows within a few hundredths of a second, after letters that are being typed."""
        self._pending.append(piece)
        if self._cancel is None and self._is_there:
            app, wait_s = self.app, min(max(_EVERY_S, _SHARE * self._took_s), _MOST_S)
            assert isinstance(app, Pace)
            self._cancel = app.put_off(self._flush, wait_s)

    def on_mount(self) -> None:
        self._is_there = True
        if self._pending:
            self.add("")

    def on_unmount(self) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._cancel is not None:
            self._cancel()
            self._cancel = None

    def _flush(self) -> None:
        if self._cancel is None:  # stopped meanwhile
            return
        self._cancel = None
        started, before = perf_counter(), len(self._set.lines)
        self._set.grow("".join(self._pending))
        self._pending.clear()
        width = self.size.width
        first = self._set.lay(width) if width else 0
        for row in [row for row in self._strips if row >= first]:
            del self._strips[row]
        self._took_s = perf_counter() - started
        if len(self._set.lines) != before or not width:
            self.refresh(layout=True)
        else:
            self.refresh(Region(0, first, width, before - first))

    def get_content_width(self, container: Size, viewport: Size) -> int:
        return container.width

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        if not width:
            return 0
        if self._set.lay(width) == 0:
            self._strips.clear()
        return len(self._set.lines)

    # drawing

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._strips.clear()

    def selection_updated(self, selection: Selection | None) -> None:
        self._strips.clear()
        self.refresh()

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        return selection.extract("\n".join(line.plain.rstrip() for line in self._set.lines)), "\n"

    def render_line(self, y: int) -> Strip:
        strip = self._strips.get(y)
        if strip is None:
            strip = self._strips[y] = self._drawn(y)
        return strip

    def _drawn(self, y: int) -> Strip:
        base, width = self.visual_style, self.size.width
        if y >= len(self._set.lines):
            return Strip.blank(width, base.rich_style)
        line = self._set.lines[y]
        selection = self.text_selection
        span = selection.get_span(y) if selection is not None else None
        if span is not None:
            start, end = span
            looks = Style.from_styles(self.screen.get_component_styles("screen--selection"))
            line = line.stylize(looks, start, len(line) if end == -1 else end)
        segments, at = [], 0
        for words, style in line.render(base, end="", parse_style=self._get_style):
            segments.append(Segment(words, (base + style).rich_style_with_offset(at, y)))
            at += len(words)
        return Strip(segments).adjust_cell_length(width, base.rich_style)
