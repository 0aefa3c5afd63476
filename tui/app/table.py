"""A table of memories that holds only the pages that were looked at, whatever the bank's size."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from rich.segment import Segment
from textual import events, work
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.timer import Timer
from textual.widget import Widget

from mnemos.errors import MnemosError
from mnemos.tui.app.columns import Column, Seen, fitting
from mnemos.tui.app.pace import PromptScreen
from mnemos.tui.console import visible
from mnemos.tui.recollections import one_line

if TYPE_CHECKING:
    from mnemos.memory.records import Memory, Tier
    from mnemos.store.browsing import Uses

PAGE = 64  # memories that are read at a time
_LOOKS = ("head", "cursor", "marked", "dim")
_BAR_S = 0.2  # of rest before the scroll bar is drawn, which takes as long as the rows
_KEPT = 32  # pages; those that were looked at longest ago go first


@dataclass
class Page:
    """Some rows; None for one that was forgotten since it was found."""

    rows: "Sequence[Memory | None]" = ()
    uses: "Mapping[str, Uses]" = field(default_factory=dict)
    tiers: "Mapping[str, Tier]" = field(default_factory=dict)
    is_settled: bool = True  # else what lies here may still move
    is_stale: bool = False  # to be read again when it comes into view


Fetch = Callable[[int, int], Page]  # (limit, offset); runs in a thread


class MemoryTable(ScrollView, can_focus=True):
    """Rows are fetched in pages as they come into view; until then they show dots."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {f"table--{name}" for name in _LOOKS}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False, id="table.up"),
        Binding("down,j", "move(1)", "Down", show=False, id="table.down"),
        Binding("pageup", "page(-1)", "Page up", show=False, id="table.page_up"),
        Binding("pagedown", "page(1)", "Page down", show=False, id="table.page_down"),
        Binding("home,g", "edge(-1)", "First", show=False, id="table.first"),
        Binding("end,G", "edge(1)", "Last", show=False, id="table.last"),
        Binding("space", "mark", "Mark", id="table.mark"),
    ]
    cursor: reactive[int] = reactive(0)

    class Moved(Message):
        """The cursor stands on a memory that is known by now."""

        def __init__(self, memory: "Memory | None") -> None:
            super().__init__()
            self.memory = memory

    class Marked(Message):
        """Other memories are marked."""

    class Failed(Message):
        """A page could not be read."""

        def __init__(self, error: MnemosError) -> None:
            super().__init__()
            self.error = error

    def __init__(self) -> None:
        super().__init__(id="table")
        self._drawn: dict[int, Strip] = {}  # lines of the screen, until something changes
        self.count = 0
        self.marked: dict[str, Memory] = {}
        self._fetch: Fetch | None = None
        self._pages: OrderedDict[int, Page] = OrderedDict()
        self._wanted: OrderedDict[int, None] = OrderedDict()
        self._generation = 0
        self._is_fetching = False
        self._bar_timer: Timer | None = None
        self._way = 1  # the cursor's last: down, or up with -1

    def show(self, fetch: Fetch, count: int, first: Page | None = None) -> None:
        """Other rows; `first` is the first page, where it is known already."""
        self._generation += 1
        self._fetch, self.count = fetch, count
        self._pages.clear()
        self._wanted.clear()
        if first is not None:
            self._pages[0] = first
        self._resize(count)
        self.cursor = min(self.cursor, max(count - 1, 0))
        self.scroll_to_cursor()
        self.refresh()
        self._tell()

    def halt(self) -> None:
        """Read nothing more of these rows: others are on their way."""
        self._fetch = None
        self._wanted.clear()

    def set_count(self, count: int) -> None:
        """How many rows there are, where more were found since."""
        if count == self.count and all(page.is_settled for page in self._pages.values()):
            return
        for number, page in self._pages.items():
            is_full = len(page.rows) == PAGE or number * PAGE + len(page.rows) >= count
            page.is_stale = page.is_stale or not page.is_settled or not is_full
        self.count = count
        self._resize(count)
        self.refresh()

    def _resize(self, count: int) -> None:
        """So many rows to scroll through; the screen need not be laid out for it."""
        size = Size(0, count + 1)
        self.set_reactive(Widget.virtual_size, size)
        if self._bar_timer is not None:
            self._bar_timer.stop()
        self._bar_timer = self.set_timer(_BAR_S, self._show_bar)

    def _show_bar(self) -> None:
        self._scroll_update(self.virtual_size)

    def row(self, index: int) -> "Memory | None":
        """A row, where its page was read already; else None, and it is read soon."""
        page = self._page_of(index)
        at = index % PAGE
        return page.rows[at] if page is not None and at < len(page.rows) else None

    def _page_of(self, index: int) -> Page | None:
        number = index // PAGE
        found = self._pages.get(number)
        if (found is None or found.is_stale) and 0 <= index < self.count:
            self._want(number)
        if found is not None:
            self._pages.move_to_end(number)
        return found

    @property
    def current(self) -> "Memory | None":
        return self.row(self.cursor)

    def replace(self, memory: "Memory") -> None:
        """A row with other flags."""
        for page in self._pages.values():
            page.rows = [memory if each and each.id == memory.id else each for each in page.rows]
        if memory.id in self.marked:
            self.marked[memory.id] = memory
        self.refresh()
        self._tell()

    # reading

    def _want(self, page: int) -> None:
        self._wanted[page] = None
        self._wanted.move_to_end(page)
        while len(self._wanted) > 4:  # scrolled past long ago
            self._wanted.popitem(last=False)
        if not self._is_fetching and self._fetch is not None:
            self._is_fetching = True
            self._read()

    @work
    async def _read(self) -> None:
        try:
            while self._wanted and self._fetch is not None:
                page, _ = self._wanted.popitem()
                generation, fetch = self._generation, self._fetch
                try:
                    found = await asyncio.to_thread(fetch, PAGE, page * PAGE)
                except MnemosError as error:
                    self.post_message(self.Failed(error))
                    return
                if generation != self._generation:
                    continue
                self._pages[page] = found
                while len(self._pages) > _KEPT:
                    self._pages.popitem(last=False)
                if page in self._in_view:
                    if isinstance(self.screen, PromptScreen):
                        self.screen.hasten()
                    self.refresh()
                if page == self.cursor // PAGE:
                    self._tell()
                if not self._wanted:
                    self._look_ahead()
        finally:
            self._is_fetching = False

    @property
    def _in_view(self) -> range:
        """Pages with a row on the screen."""
        top = self.scroll_offset.y
        return range(top // PAGE, max(top + self.size.height - 2, top) // PAGE + 1)

    def _look_ahead(self) -> None:
        """Want the page that comes next on the way, so that it is there when the cursor is."""
        pages = self._in_view
        page = pages.stop if self._way > 0 else pages.start - 1
        found = self._pages.get(page)
        if 0 <= page * PAGE < self.count and (found is None or found.is_stale):
            self._want(page)

    # moving

    def action_move(self, by: int) -> None:
        self.cursor = min(max(self.cursor + by, 0), max(self.count - 1, 0))

    def action_page(self, by: int) -> None:
        self.action_move(by * max(self.size.height - 2, 1))

    def action_edge(self, by: int) -> None:
        self.cursor = 0 if by < 0 else max(self.count - 1, 0)

    def action_mark(self) -> None:
        memory = self.current
        if memory is None:
            return
        if self.marked.pop(memory.id, None) is None:
            self.marked[memory.id] = memory
        self.action_move(1)
        self.refresh()
        self.post_message(self.Marked())

    def watch_cursor(self, before: int, now: int) -> None:
        self._way = 1 if now >= before else -1
        self.scroll_to_cursor()
        self._look_ahead()
        self.refresh()
        self._tell()

    def scroll_to_cursor(self) -> None:
        """Bring the cursor's row into view, under the heading."""
        top, rows = self.scroll_offset.y, max(self.size.height - 1, 1)
        if self.cursor < top:
            self.scroll_to(y=self.cursor, animate=False, immediate=True)
        elif self.cursor >= top + rows:
            self.scroll_to(y=self.cursor - rows + 1, animate=False, immediate=True)

    def _tell(self) -> None:
        self.post_message(self.Moved(self.current))

    def on_click(self, event: events.Click) -> None:
        if event.y >= 1 and (index := self.scroll_offset.y + event.y - 1) < self.count:
            self.cursor = index

    # drawing

    def render_lines(self, crop: Region) -> list[Strip]:
        """Whole lines at once, without Textual's box around each: a table has no border."""
        region, left = self.region, self.styles.padding.left
        width, filters, ground = region.width, self.get_line_filters(), self.background_colors[1]
        looks = {name: self.get_component_rich_style(f"table--{name}") for name in _LOOKS}
        looks["plain"] = self.rich_style
        columns = fitting(self.size.width)
        lines: list[Strip] = []
        for y in crop.line_range:
            if (drawn := self._drawn.get(y)) is not None:
                lines.append(drawn.crop(crop.x, crop.right))
                continue
            words, look = self._row_at(y, columns)
            style = looks[look]
            line = Strip([Segment(" " * left, looks["plain"]), Segment(words, style)])
            line = line.adjust_cell_length(self.size.width + left, style)
            line = line.adjust_cell_length(width, looks["plain"])
            for each in filters:
                line = line.apply_filter(each, ground)
            self._drawn[y] = line
            lines.append(line.crop(crop.x, crop.right))
        return lines

    def _set_dirty(self, *regions: Region) -> None:
        self._drawn.clear()
        super()._set_dirty(*regions)

    def _row_at(self, y: int, columns: Sequence[Column]) -> tuple[str, str]:
        """What stands in a line of the screen, and how it looks."""
        if y == 0:
            names = [(name, cells, right) for name, cells, _, right in columns]
            return _joined(names, "text", " "), "head"
        index = self.scroll_offset.y + y - 1
        if index >= self.count:
            return "", "plain"
        page = self._page_of(index)
        memory = self.row(index)
        is_marked = memory is not None and memory.id in self.marked
        look = "plain"
        if index == self.cursor:
            look = "cursor"
        elif is_marked:
            look = "marked"
        elif memory is not None and memory.hidden:
            look = "dim"
        if page is None or memory is None:
            return ("  ···" if page is None or page.is_stale else "  forgotten meanwhile"), look
        seen = Seen(memory, page.uses.get(memory.id), page.tiers.get(memory.id))
        cells = [(visible(show(seen)), size, right) for _, size, show, right in columns]
        return _joined(cells, visible(one_line(memory)), "●" if is_marked else " "), look


def _joined(cells: list[tuple[str, int, bool]], text: str, mark: str) -> str:
    parts = [f"{mark} "]
    for value, size, right in cells:
        value = value[:size]
        parts.append(f"{value:>{size}}  " if right else f"{value:<{size}}  ")
    return "".join(parts) + text
