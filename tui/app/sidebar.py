"""The sessions, latest first: switch, begin, find and rename."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from mnemos.tui import when
from mnemos.tui.console import visible


@dataclass(frozen=True)
class SessionLine:
    """A session as the sidebar shows it; without a title, its first words stand for one."""

    id: str
    title: str
    turns: int
    updated_at: datetime
    depth: int = 0  # of a branch, below the session that it began in


class Sidebar(Vertical):
    """A list with a field to search it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "new", "New", id="sessions.new"),
        Binding("r", "rename", "Rename", id="sessions.rename"),
        Binding("d,delete", "delete", "Delete", id="sessions.delete"),
        Binding("slash", "search", "Search", key_display="/", id="sessions.search"),
        Binding("escape", "close", "Close", id="sessions.close"),
    ]

    class Chosen(Message):
        """Go on with a session; None: a new one."""

        def __init__(self, session_id: str | None) -> None:
            super().__init__()
            self.session_id = session_id

    class Renaming(Message):
        """A session is to get another name."""

        def __init__(self, session: SessionLine) -> None:
            super().__init__()
            self.session = session

    class Deleting(Message):
        """A session is to go."""

        def __init__(self, session: SessionLine) -> None:
            super().__init__()
            self.session = session

    class Closed(Message):
        """The sidebar is to go."""

    def __init__(self) -> None:
        super().__init__(id="sidebar")
        self.sessions: Sequence[SessionLine] = ()
        self._current: str | None = None

    def compose(self) -> ComposeResult:
        yield Static("Sessions", classes="title")
        yield Input(placeholder="Search", compact=True)
        yield OptionList()
        yield Static("No sessions yet", classes="empty")

    def show(self, sessions: Sequence[SessionLine], current: str | None) -> None:
        self.sessions, self._current = sessions, current
        if self.query(OptionList):  # not while the app closes
            self._fill()

    def _fill(self) -> None:
        words = self.query_one(Input).value.casefold()
        shown = [each for each in self.sessions if words in each.title.casefold()]
        options = self.query_one(OptionList)
        options.clear_options()
        options.add_options([Option(self._line(each), id=each.id) for each in shown])
        at = next((at for at, each in enumerate(shown) if each.id == self._current), 0 if shown else None)
        options.highlighted = at
        self.query_one(".empty").display = not shown

    def _line(self, session: SessionLine) -> Content:
        here = session.id == self._current
        indent = "  " * max(min(session.depth, 4) - 1, 0)
        mark = ("● " if here else "  ") + (f"{indent}└ " if session.depth else "")
        turns = f"{session.turns} turn{'' if session.turns == 1 else 's'}"
        age = when.age_of(session.updated_at)
        return Content.assemble(
            (f"{mark}{visible(session.title)}"[:60], "bold" if here else ""),
            "\n",
            (f"{' ' * len(mark)}{age if age == 'now' else age + ' ago'} · {turns}", "dim"),
        )

    def on_input_changed(self) -> None:
        self._fill()

    def on_input_submitted(self) -> None:
        self.query_one(OptionList).focus()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self.post_message(self.Chosen(event.option.id))

    def focus_list(self) -> None:
        self.query_one(OptionList).focus()

    def action_new(self) -> None:
        self.post_message(self.Chosen(None))

    def action_rename(self) -> None:
        if (found := self.highlighted) is not None:
            self.post_message(self.Renaming(found))

    def action_delete(self) -> None:
        if (found := self.highlighted) is not None:
            self.post_message(self.Deleting(found))

    @property
    def highlighted(self) -> SessionLine | None:
        options = self.query_one(OptionList)
        if options.highlighted is None:
            return None
        chosen = options.get_option_at_index(options.highlighted).id
        return next((each for each in self.sessions if each.id == chosen), None)

    def action_search(self) -> None:
        self.query_one(Input).focus()

    def action_close(self) -> None:
        self.post_message(self.Closed())
