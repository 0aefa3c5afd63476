"""The quiet line above the prompt: what the agent is doing, and what the last turn took."""

from collections.abc import Callable
from time import perf_counter

from textual.app import RenderResult
from textual.content import Content
from textual.widget import Widget

from mnemos.tui.app.pace import Pace

_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_EVERY_S = 0.12


class Status(Widget):
    """One line: a state on the left, the model on the right. It ticks only while something runs."""

    def __init__(self) -> None:
        super().__init__(id="status")
        self._text = ""
        self._right = self._mark = ""
        self._frame = 0
        self._cancel: Callable[[], None] | None = None  # the next tick
        self._live: Callable[[], str] | None = None
        self._kind = ""

    @property
    def text(self) -> str:
        return self._live() if self._live else self._text

    def idle(self, text: str = "") -> None:
        """Nothing runs; the line keeps what the last turn took."""
        self._text, self._live, self._kind = text, None, ""
        self._stop()
        self.refresh()

    def working(self, text: str | Callable[[], str]) -> None:
        """Something runs; a function is asked for the words at each tick."""
        self._live = text if callable(text) else (lambda: text)
        self._kind = "working"
        if self._cancel is None:
            self._tick_later()
        self.refresh()

    def right(self, text: str, *, mark: str = "") -> None:
        """What stands at the end of the line; a mark before it stands out."""
        self._right, self._mark = text, mark
        self.refresh()

    def on_unmount(self) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._cancel is not None:
            self._cancel()
            self._cancel = None

    def _tick_later(self) -> None:
        app = self.app
        assert isinstance(app, Pace)
        self._cancel = app.put_off(self._tick, _EVERY_S)

    def _tick(self) -> None:
        if self._cancel is not None:
            self._frame += 1
            self.refresh()
            self._tick_later()

    def render(self) -> RenderResult:
        mark = f"{_FRAMES[self._frame % len(_FRAMES)]} " if self._kind else ""
        left = Content.styled(mark, "$accent") + Content(self.text)
        marked = Content.styled(f" {self._mark} ", "reverse bold") if self._mark else Content("")
        right = Content.assemble(marked, "  " if self._mark and self._right else "", self._right)
        width = self.content_size.width
        if width - right.cell_length < left.cell_length + 2:
            right = marked  # before the model's name, what was said about storing
        room = width - right.cell_length
        if room < left.cell_length:
            left = left.truncate(max(room - 1, 1), ellipsis=True)
        return left.pad_right(max(room - left.cell_length, 0)) + right


class Speed:
    """Pieces of a reply a second, while it streams."""

    def __init__(self) -> None:
        self._first: float | None = None
        self._pieces = 0

    def add(self) -> None:
        self._first = self._first or perf_counter()
        self._pieces += 1

    def after(self, line: str) -> str:
        """What was recalled, and how fast the reply comes."""
        return f"{line}  ·  {str(self) or 'reading'}"

    def __str__(self) -> str:
        if self._first is None or self._pieces < 2:
            return ""
        seconds = perf_counter() - self._first
        return f"{(self._pieces - 1) / max(seconds, 1e-3):.0f} tokens/s"
