"""Memories a day as one line of bars; the cursor on it chooses the days that the table shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, ClassVar

from rich.segment import Segment
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget

from mnemos.tui.app.narrowing import Span

if TYPE_CHECKING:
    from mnemos.memory.survey import Day, Survey

_BARS = "▁▂▃▄▅▆▇█"
_NAME = "days  "
_LABEL_CELLS = 34


@dataclass(frozen=True)
class Bucket:
    """What one bar stands for: `days` days from the first on."""

    first: date
    days: int
    memories: int
    low: int
    high: int


def buckets(days: "Mapping[date, Day]", cells: int) -> list[Bucket]:
    """At most as many bars as there are cells, of equally many days each; none without a memory."""
    if not days or cells < 1:
        return []
    first, last = min(days), max(days)
    each = -(-((last - first).days + 1) // cells)
    made: dict[int, Bucket] = {}
    for day, part in days.items():
        at = (day - first).days // each
        old = made.get(at)
        made[at] = Bucket(
            first + timedelta(days=at * each),
            each,
            part.memories + (old.memories if old else 0),
            min(part.low, old.low) if old else part.low,
            max(part.high, old.high) if old else part.high,
        )
    count = (last - first).days // each + 1
    return [made.get(at) or Bucket(first + timedelta(days=at * each), each, 0, 0, 0) for at in range(count)]


def bars(counts: Sequence[int]) -> str:
    """A bar for each; a space for none."""
    most = max(counts, default=0)
    return "".join(_BARS[(count * len(_BARS) - 1) // most] if count else " " for count in counts)


class Timeline(Widget, can_focus=True):
    """One line: bars, and what they stand for."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"timeline--bars", "timeline--cursor", "timeline--label"}
    DEFAULT_CSS = """
    Timeline { height: 1; padding: 0 2; }
    Timeline > .timeline--bars { color: $primary; }
    Timeline > .timeline--label { color: $text-muted; }
    Timeline > .timeline--cursor { color: $background; background: $accent; text-style: bold; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,h", "step(-1)", "Earlier", id="timeline.earlier"),
        Binding("right,l", "step(1)", "Later", id="timeline.later"),
        Binding("home", "edge(0)", "First", show=False, id="timeline.first"),
        Binding("end", "edge(-1)", "Last", show=False, id="timeline.last"),
        Binding("enter,down,j", "leave", "To the table", id="timeline.leave"),
        Binding("backspace,delete", "clear", "All days", id="timeline.clear"),
    ]
    cursor: reactive[int | None] = reactive(None)

    class Picked(Message):
        """Some days are chosen, or all of them."""

        def __init__(self, span: Span | None) -> None:
            super().__init__()
            self.span = span

    class Left(Message):
        """Back to the table; what is chosen stays."""

    def __init__(self) -> None:
        super().__init__(id="timeline")
        self._survey: Survey | None = None
        self._days: Mapping[date, Day] = {}
        self._buckets: list[Bucket] = []

    def show(self, survey: "Survey") -> None:
        """What is counted so far."""
        self._survey, self._days = survey, survey.days
        self._rebuild()

    def on_resize(self) -> None:
        self._rebuild()

    def _rebuild(self) -> None:
        before = self.chosen
        self._buckets = buckets(self._days, max(self.size.width - len(_NAME) - _LABEL_CELLS - 2, 8))
        if before is not None:
            at = next((at for at, bucket in enumerate(self._buckets) if bucket.first == before.first), None)
            self.set_reactive(Timeline.cursor, at)
            if at is None:  # the bars stand for other days now
                self.post_message(self.Picked(None))
        self.refresh()

    @property
    def chosen(self) -> Bucket | None:
        at = self.cursor
        return self._buckets[at] if at is not None and at < len(self._buckets) else None

    def action_step(self, by: int) -> None:
        """To the next bar that stands for any memory."""
        at = len(self._buckets) if self.cursor is None else self.cursor
        steps = range(at + by, len(self._buckets) if by > 0 else -1, by)
        self.cursor = next((step for step in steps if self._buckets[step].memories), self.cursor)

    def action_edge(self, at: int) -> None:
        if self._buckets:
            self.cursor = at % len(self._buckets)

    def action_clear(self) -> None:
        self.cursor = None

    def action_leave(self) -> None:
        self.post_message(self.Left())

    def on_click(self, event: events.Click) -> None:
        at = event.x - self.styles.padding.left - len(_NAME)
        if 0 <= at < len(self._buckets) and self._buckets[at].memories:
            self.cursor = None if at == self.cursor else at

    def watch_cursor(self) -> None:
        bucket = self.chosen
        if bucket is None or self._survey is None:
            self.post_message(self.Picked(None))
            return
        start = self._survey.start_of(bucket.first)
        end = self._survey.start_of(bucket.first + timedelta(days=bucket.days))
        self.post_message(self.Picked(Span(start, end, bucket.low, bucket.high)))

    def render_line(self, y: int) -> Strip:
        if y or not self._buckets:
            return Strip.blank(self.size.width, self.rich_style)
        label = self.get_component_rich_style("timeline--label")
        line = bars([bucket.memories for bucket in self._buckets])
        segments = [Segment(_NAME, label)]
        for at, bar in enumerate(line):
            name = "cursor" if at == self.cursor else "bars"
            segments.append(Segment(bar, self.get_component_rich_style(f"timeline--{name}")))
        segments.append(Segment(f"  {self._label()}", label))
        return Strip(segments).adjust_cell_length(self.size.width, self.rich_style)

    def _label(self) -> str:
        bucket = self.chosen
        first = bucket.first if bucket else self._buckets[0].first
        last = (bucket or self._buckets[-1]).first + timedelta(days=self._buckets[0].days - 1)
        days = f"{first:%Y-%m-%d}" if first == last else f"{first:%Y-%m-%d} to {last:%Y-%m-%d}"
        return f"{days}  {bucket.memories:,}" if bucket else days
