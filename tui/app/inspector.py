"""The inspector: every memory of a namespace in a table, with the words and the provenance of each."""

import asyncio
from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING, ClassVar, Self

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.geometry import Region
from textual.timer import Timer
from textual.widgets import Input, Static

from mnemos.errors import MnemosError, NotFoundError
from mnemos.tui import output
from mnemos.tui.app.detail import Detail
from mnemos.tui.app.inspector_actions import Acting
from mnemos.tui.app.key_bar import KeyBar
from mnemos.tui.app.narrowing import Narrowed, Span
from mnemos.tui.app.overview import Overview
from mnemos.tui.app.table import PAGE, MemoryTable, Page
from mnemos.tui.app.timeline import Timeline

if TYPE_CHECKING:
    from mnemos.memory.listing import Listing, Sort
    from mnemos.memory.records import Memory
    from mnemos.memory.survey import Survey

_DETAIL_S = 0.12  # of rest before a detail is read
_HUSHED_S = 0.1  # at most, before the first paint
_TELL_S = 0.1  # between two accounts of what was found so far
_FIRST_S = 0.01  # that is searched before the first rows are read, unless it found a page of them
_TURN_S = 0.005  # until it looks again whether somebody types
_SORTS: "tuple[Sort, ...]" = ("created", "size", "uses")
_SAID = {"created": "newest first", "size": "largest first", "uses": "most used first"}


class FilterBox(Input):
    """A line of fixed size, so that no letter has the screen laid out anew."""

    def refresh(
        self, *regions: Region, repaint: bool = True, layout: bool = False, recompose: bool = False
    ) -> Self:
        return super().refresh(*regions, repaint=repaint, recompose=recompose)


class Inspector(Acting):
    """Filter, timeline, table, detail."""

    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (90, "-middle"), (140, "-wide")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f,delete", "forget", "Forget", id="inspector.forget"),
        Binding("h", "flag('hide')", "Hide", id="inspector.hide"),
        Binding("p", "flag('pin')", "Pin", id="inspector.pin"),
        Binding("t", "tag", "Tag", id="inspector.tag"),
        Binding("x", "expire", "Expire", id="inspector.expire"),
        Binding("e", "export", "Export", id="inspector.export"),
        Binding("s", "sort", "Sort", id="inspector.sort"),
        Binding("d", "days", "Days", id="inspector.days"),
        Binding("slash", "filter", "Filter", key_display="/", id="inspector.filter"),
        Binding("enter", "detail", "Words", id="inspector.detail"),
        Binding("m", "map", "Map", show=False, id="inspector.map"),
        Binding("c", "copy", "Copy", show=False, id="inspector.copy"),
        Binding("r", "reload", "Reload", show=False, id="inspector.reload"),
        Binding("escape", "back", "Back", id="inspector.back"),
    ]

    def __init__(self, filter_text: str = "") -> None:
        super().__init__()
        self._filter = filter_text
        self._span: Span | None = None
        self._sort: Sort = "created"
        self._listing: Listing | None = None
        self._survey: Survey | None = None
        self._detail_timer: Timer | None = None
        self._is_hushed = False

    def compose(self) -> ComposeResult:
        yield FilterBox(
            self._filter, placeholder="Filter by words, or tag:work and since:3d", id="filter", compact=True
        )
        yield Timeline()
        yield Overview()
        with Container(id="panes"):
            yield MemoryTable()
            yield Detail()
        yield Static(id="summary", markup=False)
        yield KeyBar(has_palette=False)

    def on_mount(self) -> None:
        self.app._begin_batch()  # laid out four times until it stands, and painted once
        self._is_hushed = True
        self.set_timer(_HUSHED_S, self._speak)
        self.table.focus()
        self.load()

    def on_unmount(self) -> None:
        self._speak()

    def _compositor_refresh(self) -> None:
        if not self._is_hushed:
            super()._compositor_refresh()

    def _speak(self) -> None:
        """Paint what there is: the first rows, or the frame where they take long."""
        if self._is_hushed:
            self._is_hushed = False
            self.app._end_batch()
            self.hasten()
            self.check_idle()

    @property
    def table(self) -> MemoryTable:
        return self.query_one(MemoryTable)

    # what is shown

    @work(exclusive=True, group="load")
    async def load(self, *, keep: bool = False) -> None:
        """Find what the filter allows, piece by piece; the first rows show before all are found."""
        from mnemos.memory.listing import Listing

        narrowed = Narrowed.read(self._filter).during(self._span)
        listing = Listing(
            self.bank, self.app.namespace, narrowed.filter, sort=self._sort, within=narrowed.within
        )
        table, told = self.table, 0.0

        def fetch(limit: int, offset: int) -> Page:
            rows = listing.page(limit, offset)
            ids = [memory.id for memory in rows if memory is not None]
            return Page(
                rows,
                listing.uses(ids) if ids else {},
                self.bank.tiers([memory for memory in rows if memory is not None]),
                offset + limit <= listing.settled,
            )

        def begin() -> tuple[bool, Page]:
            started, is_more = perf_counter(), listing.grow()
            while is_more and listing.count < PAGE and perf_counter() - started < _FIRST_S:
                is_more = listing.grow()
            return is_more, fetch(PAGE, 0)

        async def show(found: Page | None = None) -> None:
            first: Page = await asyncio.to_thread(fetch, PAGE, 0) if found is None else found
            if not keep:
                table.marked.clear()
                table.cursor = 0
            if self._listing is None:
                self._count()  # after the first rows, so that they come first
            self._listing = listing
            table.show(fetch, max(len(first.rows), listing.count, table.count if keep else 0), first)
            self._speak()
            await self._painted()  # before more is searched: both want the one interpreter

        try:
            if listing.is_quick:
                await show()
            loop = asyncio.get_running_loop()
            is_more, first = await asyncio.to_thread(begin)
            if self._listing is not listing and first.rows and not keep and self._sort == "created":
                await show(first)
            while is_more:
                while self.app.is_typing if table.count else self.app.is_answering:
                    await asyncio.sleep(_TURN_S)
                is_due = loop.time() - told > _TELL_S
                if self._listing is not listing and not keep and self._sort == "created":
                    await show()
                elif self._listing is listing and is_due and not keep:
                    table.set_count(listing.count)
                if is_due or not told:
                    told = loop.time()
                    self._summarise()
                is_more = await asyncio.to_thread(listing.grow)
            if self._listing is not listing:
                await show()
            table.set_count(listing.count)
        except NotFoundError:  # the namespace went with its last memory, or is not there yet
            table.show(fetch, 0)
            self._speak()
        except MnemosError as error:
            self._fail(error)
            return
        self._listing = listing
        table.action_move(0)
        self._summarise()

    async def _painted(self) -> None:
        """Wait until what changed is on the screen."""
        done = asyncio.Event()
        self.hasten()
        self.call_after_refresh(done.set)
        with suppress(TimeoutError):  # another screen lies over this one
            await asyncio.wait_for(done.wait(), _HUSHED_S)

    @work(exclusive=True, group="count")
    async def _count(self) -> None:
        """Sum up the namespace behind what is shown."""
        from mnemos.memory.survey import Survey

        survey = Survey(self.bank, self.app.namespace)
        told = asyncio.get_running_loop().time()
        try:
            while await asyncio.to_thread(survey.grow):
                await asyncio.sleep(_TURN_S)  # who waits for the database has a turn
                while self.app.is_typing:
                    await asyncio.sleep(_TURN_S)
                if asyncio.get_running_loop().time() - told > 10 * _TELL_S:
                    told = asyncio.get_running_loop().time()
                    self._show_counts(survey)
        except MnemosError as error:
            self._fail(error)
            return
        self._show_counts(survey)

    def _show_counts(self, survey: "Survey") -> None:
        self._survey = survey
        self.query_one(Timeline).show(survey)
        self.query_one(Overview).show(survey, self.bank.held_bytes())
        self._summarise()

    def _fail(self, error: MnemosError) -> None:
        self.query_one("#summary", Static).update(f"error: {error}")

    def _summarise(self) -> None:
        table, listing = self.table, self._listing
        noun = "memory" if table.count == 1 else "memories"
        parts = [f"{len(table.marked):,} marked"] if table.marked else []
        narrowed = Narrowed.read(self._filter)
        what = " that contain the text" if narrowed.matching else ""
        what = " that fit the selector" if narrowed.where is not None else what
        parts.append(f"{table.count:,} {noun}{what}")
        if listing is not None and not listing.is_complete and not listing.is_quick:
            parts.append(f"searching {listing.share:.0%}")
        if self._sort != "created":
            parts.append(_SAID[self._sort])
        if self._survey is not None and narrowed == Narrowed() and self._span is None:
            parts += [f"{self._survey.tokens:,} tokens"] if self._survey.tokens else []
            parts.append(f"{output.size(self._survey.text_bytes)} text")
            parts.append(f"{output.size(self._survey.trace_bytes)} traces")
            pending = self._survey.fidelities.get("pending")
            parts += [f"{pending.memories:,} not read yet"] if pending else []
        self.query_one("#summary", Static).update("  ·  ".join(parts))

    def on_input_changed(self, event: Input.Changed) -> None:
        if event.value != self._filter:
            self._filter = event.value
            self.table.halt()
            self.load()

    def on_input_submitted(self) -> None:
        self.table.focus()

    def on_timeline_picked(self, event: Timeline.Picked) -> None:
        if event.span != self._span:
            self._span = event.span
            self.load()

    def on_timeline_left(self) -> None:
        self.table.focus()

    def on_memory_table_moved(self, event: MemoryTable.Moved) -> None:
        if self._detail_timer is not None:
            self._detail_timer.stop()
        self._detail_timer = self.set_timer(_DETAIL_S, lambda: self.show_detail(event.memory))

    def on_memory_table_marked(self) -> None:
        self._summarise()

    def on_memory_table_failed(self, event: MemoryTable.Failed) -> None:
        self._fail(event.error)

    @work(exclusive=True, group="detail")
    async def show_detail(self, memory: "Memory | None") -> None:
        await self.query_one(Detail).show(self.bank, memory)

    @work(exclusive=True, group="jump")
    async def on_detail_jumped(self, event: Detail.Jumped) -> None:
        """To its row, where it is among those shown; its words are shown anyway."""
        listing = self._listing
        if listing is None:
            return
        try:
            memory = await asyncio.to_thread(self.bank.get, event.memory_id, namespace=self.app.namespace)
            place = await asyncio.to_thread(listing.find, memory.id)
        except MnemosError as error:
            self.app.tell_error(error)
            return
        if place is not None and place < self.table.count:
            self.table.cursor = place
        else:
            self.notify("it is not among those in the table", timeout=2)
            self.show_detail(memory)
        self.query_one(Detail).focus()

    # moving about

    def action_sort(self) -> None:
        """By age, by size, by uses, in turn."""
        self._sort = _SORTS[(_SORTS.index(self._sort) + 1) % len(_SORTS)]
        self.load()

    def action_days(self) -> None:
        self.query_one(Timeline).focus()

    def action_map(self) -> None:
        self.toggle_class("-map")

    def action_filter(self) -> None:
        self.query_one("#filter").focus()

    def action_detail(self) -> None:
        """Over the table where there is no room beside it; else the focus goes there, to scroll."""
        self.toggle_class("-detail")
        self.query_one(Detail).focus() if self.has_class("-detail") else self.table.focus()

    def action_reload(self) -> None:
        self.load(keep=True)
        self._count()

    async def action_back(self) -> None:
        """From wherever to the table, then out of the days and the filter, then out."""
        if self.has_class("-detail"):
            self.action_detail()
        elif not self.table.has_focus:
            self.table.focus()
        elif self._span is not None:
            self.query_one(Timeline).cursor = None
        elif self._filter:
            self.query_one("#filter", Input).value = ""
        else:
            await self.app.leave_inspector()
