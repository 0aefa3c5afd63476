"""A table of memories that holds only the pages that were looked at, whatever the bank's size."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events, work
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from mnemos.errors import MnemosError
from mnemos.tui import output, when
from mnemos.tui.console import visible
from mnemos.tui.recollections import one_line

if TYPE_CHECKING:
    from mnemos.memory.records import Memory

PAGE = 64  # memories that are read at a time
_KEPT = 32  # pages; those that were looked at longest ago go first
_ENOUGH_FOR_TEXT = 40  # cells; columns are left out until the text has as many

Fetch = Callable[[int, int], "Sequence[Memory]"]  # (limit, offset); runs in a thread
Column = tuple[str, int, Callable[["Memory"], str], bool]  # name, cells, what it shows, whether to the right

COLUMNS: Sequence[Column] = (
    ("id", 8, lambda memory: memory.id[: output.SHORT_ID], False),
    ("age", 4, lambda memory: when.age_of(memory.created_at), True),
    ("kind", 8, lambda memory: memory.kind, False),
    ("session", 8, lambda memory: (memory.session_id or "-")[: output.SHORT_ID], False),
    ("tokens", 6, lambda memory: str(memory.tokens or "-"), True),
    ("bytes", 8, lambda memory: output.size(memory.text_bytes + memory.trace_bytes), True),
    ("fidelity", 8, lambda memory: memory.fidelity, False),
    ("marks", 13, lambda memory: flags_of(memory), False),
)
SPARE = ("session", "bytes", "tokens", "kind", "fidelity", "marks", "id")  # left out in this order


def flags_of(memory: "Memory") -> str:
    """`pinned`, `hidden`, `expires`, or a status that is not `complete`."""
    held = [name for name in ("pinned", "hidden") if getattr(memory, name)]
    held += ["expires"] if memory.expires_at else []
    held += [] if memory.status == "complete" else [memory.status]
    return ",".join(held) or "-"


class MemoryTable(ScrollView, can_focus=True):
    """Rows are fetched in pages as they come into view; until then they show dots."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"table--head", "table--cursor", "table--marked", "table--dim"}
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
        self.count = 0
        self.marked: dict[str, Memory] = {}
        self._fetch: Fetch | None = None
        self._pages: OrderedDict[int, Sequence[Memory]] = OrderedDict()
        self._wanted: OrderedDict[int, None] = OrderedDict()
        self._generation = 0
        self._is_fetching = False

    def show(self, fetch: Fetch, count: int, first: "Sequence[Memory]" = ()) -> None:
        """Other rows; `first` are those of the first page, where they are known already."""
        self._generation += 1
        self._fetch, self.count = fetch, count
        self._pages.clear()
        self._wanted.clear()
        if first:
            self._pages[0] = first
        self.virtual_size = Size(0, count + 1)
        self.cursor = min(self.cursor, max(count - 1, 0))
        self.scroll_to_cursor()
        self.refresh()
        self._tell()

    def set_count(self, count: int) -> None:
        """How many rows there are, where that is known later than the first of them."""
        self.count = count
        self.virtual_size = Size(0, count + 1)

    def row(self, index: int) -> "Memory | None":
        """A row, where its page was read already; else None, and it is read soon."""
        page, at = divmod(index, PAGE)
        found = self._pages.get(page)
        if found is None:
            if 0 <= index < self.count:
                self._want(page)
            return None
        self._pages.move_to_end(page)
        return found[at] if at < len(found) else None

    @property
    def current(self) -> "Memory | None":
        return self.row(self.cursor)

    def replace(self, memory: "Memory") -> None:
        """A row with other flags."""
        for number, page in self._pages.items():
            self._pages[number] = [memory if each.id == memory.id else each for each in page]
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
        if not self._is_fetching:
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
                self.refresh()
                if page == self.cursor // PAGE:
                    self._tell()
        finally:
            self._is_fetching = False

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

    def watch_cursor(self) -> None:
        self.scroll_to_cursor()
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

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        if y == 0:
            style = self.get_component_rich_style("table--head")
            return self._line(
                [(name, cells, right) for name, cells, _, right in self._columns()], "text", " ", style
            )
        index = self.scroll_offset.y + y - 1
        if index >= self.count:
            return Strip.blank(width, self.rich_style)
        memory = self.row(index)
        is_marked = memory is not None and memory.id in self.marked
        style = self.rich_style
        if index == self.cursor:
            style = self.get_component_rich_style("table--cursor")
        elif is_marked:
            style = self.get_component_rich_style("table--marked")
        elif memory is not None and memory.hidden:
            style = self.get_component_rich_style("table--dim")
        if memory is None:
            return Strip([Segment("  ···", style)]).adjust_cell_length(width, style)
        cells = [(visible(show(memory)), size, right) for _, size, show, right in self._columns()]
        return self._line(cells, visible(one_line(memory)), "●" if is_marked else " ", style)

    def _columns(self) -> list[Column]:
        """The columns that leave enough room for the text."""
        left = list(COLUMNS)
        for name in SPARE:
            if self.size.width - 2 - sum(column[1] + 2 for column in left) >= _ENOUGH_FOR_TEXT:
                break
            left = [column for column in left if column[0] != name]
        return left

    def _line(self, cells: list[tuple[str, int, bool]], text: str, mark: str, style: Style) -> Strip:
        parts = [f"{mark} "]
        for value, size, right in cells:
            value = value[:size]
            parts.append(f"{value:>{size}}  " if right else f"{value:<{size}}  ")
        return Strip([Segment("".join(parts) + text, style)]).adjust_cell_length(self.size.width, style)
