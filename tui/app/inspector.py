"""The inspector: every memory of a namespace in a table, with the words and the provenance of each."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, VerticalScroll
from textual.screen import Screen
from textual.timer import Timer
from textual.widgets import Footer, Input, Static

from mnemos.errors import InvalidSelectorError, MnemosError
from mnemos.tui import output
from mnemos.tui.app.detail import Detail
from mnemos.tui.app.dialogs import TextDialog
from mnemos.tui.app.table import PAGE, MemoryTable

if TYPE_CHECKING:
    from mnemos.memory.bank import MemoryBank
    from mnemos.memory.records import BankStats, Memory
    from mnemos.store.selectors import Condition
    from mnemos.tui.app.base import MemoryApp

_FILTER_S, _DETAIL_S = 0.12, 0.06  # of rest before a filter is applied and a detail is read


@dataclass(frozen=True)
class Narrowed:
    """What the filter says: a selector, or words that a memory contains."""

    where: "Condition | None" = None
    matching: str | None = None

    @classmethod
    def read(cls, text: str) -> "Narrowed":
        """As a selector where it can be read as one."""
        from mnemos.memory.choosing import has_like
        from mnemos.tui import selecting

        if not text.strip():
            return cls()
        try:
            condition = selecting.where(text) if text.strip() != "-" else None
        except InvalidSelectorError:
            condition = None
        if condition is None or has_like(condition):  # `like` reads the model, which may not be there
            return cls(matching=text.strip())
        return cls(where=condition)


class Inspector(Screen[None]):
    """Filter, table, detail."""

    app: "MemoryApp"

    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (90, "-middle"), (140, "-wide")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f,delete", "forget", "Forget", id="inspector.forget"),
        Binding("h", "flag('hide')", "Hide", id="inspector.hide"),
        Binding("p", "flag('pin')", "Pin", id="inspector.pin"),
        Binding("x", "expire", "Expire", id="inspector.expire"),
        Binding("slash", "filter", "Filter", key_display="/", id="inspector.filter"),
        Binding("enter", "detail", "Words", id="inspector.detail"),
        Binding("c", "copy", "Copy", show=False, id="inspector.copy"),
        Binding("r", "reload", "Reload", show=False, id="inspector.reload"),
        Binding("escape", "back", "Back", id="inspector.back"),
    ]

    def __init__(self, filter_text: str = "") -> None:
        super().__init__()
        self._filter = filter_text
        self._narrowed = Narrowed()
        self._stats: BankStats | None = None
        self._resting: Timer | None = None
        self._detail_timer: Timer | None = None
        self._shown: str | None = None

    def compose(self) -> ComposeResult:
        yield Input(
            self._filter, placeholder="Filter by words, or tag:work and since:3d", id="filter", compact=True
        )
        with Container(id="panes"):
            yield MemoryTable()
            with VerticalScroll(id="detail-pane"):
                yield Detail()
        yield Static(id="summary", markup=False)
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        self.table.focus()
        self.load()

    @property
    def table(self) -> MemoryTable:
        return self.query_one(MemoryTable)

    @property
    def bank(self) -> "MemoryBank":
        return self.app.bank

    @work(exclusive=True, group="load")
    async def load(self, *, keep: bool = False) -> None:
        """Read the first page, then the count; the first rows show before the counting is over."""
        narrowed = Narrowed.read(self._filter)
        self._narrowed = narrowed
        namespace, bank = self.app.namespace, self.bank

        def fetch(limit: int, offset: int) -> "Sequence[Memory]":
            return bank.list(
                namespace,
                matching=narrowed.matching,
                where=narrowed.where,
                include_hidden=True,
                limit=limit,
                offset=offset,
            )

        try:
            first = await asyncio.to_thread(fetch, PAGE, 0)
            if not keep:
                self.table.marked.clear()
                self.table.cursor = 0
            self.table.show(fetch, max(len(first), self.table.count if keep else 0), first)
            count = len(first)
            if count == PAGE:
                count = await asyncio.to_thread(
                    bank.count,
                    namespace,
                    matching=narrowed.matching,
                    where=narrowed.where,
                    include_hidden=True,
                )
            self.table.set_count(count)
            self.table.action_move(0)
            self.table.refresh()
            self._summarise()
            if count:  # a namespace that holds nothing may not be there yet
                self._stats = await asyncio.to_thread(bank.stats, namespace)
        except MnemosError as error:
            self.query_one("#summary", Static).update(f"error: {error}")
            return
        self._summarise()

    def _summarise(self) -> None:
        marked = len(self.table.marked)
        noun = "memory" if self.table.count == 1 else "memories"
        parts = [f"{marked:,} marked"] if marked else []
        what = " that contain the text" if self._narrowed.matching else ""
        what = " that fit the selector" if self._narrowed.where is not None else what
        parts.append(f"{self.table.count:,} {noun}{what}")
        if self._stats is not None:
            parts.append(f"{self._stats.tokens:,} tokens")
            parts.append(f"{output.size(self._stats.text_bytes)} text")
            parts.append(f"{output.size(self._stats.trace_bytes)} traces")
            parts += [f"{self._stats.pending:,} not read yet"] if self._stats.pending else []
        self.query_one("#summary", Static).update("  ·  ".join(parts))

    # filter and detail

    def on_input_changed(self, event: Input.Changed) -> None:
        if event.value == self._filter:
            return
        self._filter = event.value
        if self._resting is not None:
            self._resting.stop()
        self._resting = self.set_timer(_FILTER_S, self.load)

    def on_input_submitted(self) -> None:
        self.table.focus()

    def on_memory_table_moved(self, event: MemoryTable.Moved) -> None:
        memory = event.memory
        if self._detail_timer is not None:
            self._detail_timer.stop()
        self._shown = memory.id if memory else None
        self._detail_timer = self.set_timer(_DETAIL_S, lambda: self._show_detail(memory))

    def on_memory_table_marked(self) -> None:
        self._summarise()

    def on_memory_table_failed(self, event: MemoryTable.Failed) -> None:
        self.query_one("#summary", Static).update(f"error: {event.error}")

    @work(exclusive=True, group="detail")
    async def _show_detail(self, memory: "Memory | None") -> None:
        await self.query_one(Detail).show(self.bank, memory)

    # acting

    @property
    def chosen(self) -> "list[Memory]":
        """The marked memories, or the one under the cursor."""
        current = self.table.current
        return list(self.table.marked.values()) or ([current] if current else [])

    @work(exclusive=True, group="act")
    async def action_forget(self) -> None:
        ids = [memory.id for memory in self.chosen]
        if ids and await self.app.forget(ids=ids):
            self.table.marked.clear()
            self.load(keep=True)

    @work(exclusive=True, group="act")
    async def action_flag(self, action: str) -> None:
        """Hide or pin what is not, and the reverse where all of it is."""
        chosen = self.chosen
        held = "hidden" if action == "hide" else "pinned"
        name = f"un{action}" if all(getattr(memory, held) for memory in chosen) else action
        for memory in chosen:
            changed = await self.app.change(name, memory.id)
            if changed is not None:
                self.table.replace(changed)

    @work(exclusive=True, group="act")
    async def action_expire(self) -> None:
        chosen = self.chosen
        if not chosen:
            return
        hint = "12h, 30d, 2w, a date, or nothing: it does not expire"
        text = await self.app.push_screen_wait(TextDialog("When does it expire?", hint=hint))
        if text is None:
            return
        for memory in chosen:
            changed = await self.app.expire(memory.id, text.strip())
            if changed is None:
                return
            self.table.replace(changed)

    def action_copy(self) -> None:
        memory = self.table.current
        if memory is not None:
            self.app.copy(memory.text if not memory.reply else f"{memory.text}\n\n{memory.reply}")

    def action_filter(self) -> None:
        self.query_one("#filter").focus()

    def action_detail(self) -> None:
        """Over the table where there is no room beside it; else the focus goes there, to scroll."""
        self.toggle_class("-detail")
        self.query_one("#detail-pane").focus() if self.has_class("-detail") else self.table.focus()

    def action_reload(self) -> None:
        self.load(keep=True)

    async def action_back(self) -> None:
        """From the filter or the detail to the table, from there out."""
        if self.has_class("-detail"):
            self.action_detail()
        elif not self.table.has_focus:
            self.table.focus()
        elif self._filter:
            self.query_one("#filter", Input).value = ""
        else:
            await self.app.leave_inspector()
