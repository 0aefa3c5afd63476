"""The memories that a reply was made with: their words, and what each had to do with it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.message import Message
from textual.widgets import Static

from mnemos.tui import when
from mnemos.tui.app.conversation import count_of
from mnemos.tui.console import visible

if TYPE_CHECKING:
    from mnemos.memory.records import Memory, RecalledMemory

_BAR = 10  # cells of the bar that shows a share of attention


class Recalled(Vertical, can_focus=True):
    """One memory of a reply."""

    def __init__(self, recalled: "RecalledMemory", session: str) -> None:
        super().__init__(classes="recalled")
        self.recalled = recalled
        self._session = session

    def compose(self) -> ComposeResult:
        memory = self.recalled.memory
        yield Static(head_of(self.recalled), classes="head", markup=False)
        yield Static(visible(memory.text, keep="\n\t"), classes="words", markup=False)
        if memory.reply:
            yield Static(f"▸ {visible(memory.reply, keep=chr(10))}", classes="words reply", markup=False)
        yield Static(foot_of(self.recalled, self._session), classes="foot", markup=False)

    def refresh_with(self, memory: "Memory") -> None:
        """Show other flags."""
        self.recalled = self.recalled.model_copy(update={"memory": memory})
        self.query_one(".head", Static).update(head_of(self.recalled))
        self.query_one(".foot", Static).update(foot_of(self.recalled, self._session))


def head_of(recalled: "RecalledMemory") -> str:
    """Rank, share of attention, and marks."""
    share = recalled.attention
    words = [f"{recalled.rank}"]
    if share is not None:
        full = round(share * _BAR)
        words.append(f"{'━' * full}{'╌' * (_BAR - full)} {share:.0%} attention")
    words += ["cited"] if recalled.cited else []
    words += ["pinned"] if recalled.memory.pinned else []
    return "  ".join(words)


def foot_of(recalled: "RecalledMemory", session: str) -> str:
    """Date, age, session, score."""
    memory = recalled.memory
    day = memory.created_at.astimezone().strftime("%Y-%m-%d %H:%M")
    parts = [f"{day} ({when.age_of(memory.created_at)})", session or memory.source or memory.kind]
    return " · ".join([*parts, f"score {recalled.score:.2f}", memory.id[:8]])


class MemoriesPanel(Vertical):
    """Beside the conversation, or over it where the terminal is narrow."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "step(-1)", "Up", show=False, id="panel.up"),
        Binding("down,j", "step(1)", "Down", show=False, id="panel.down"),
        Binding("f,delete", "forget", "Forget", id="panel.forget"),
        Binding("p", "pin", "Pin", id="panel.pin"),
        Binding("c", "copy", "Copy", id="panel.copy"),
        Binding("w", "without", "Without it", id="panel.without"),
        Binding("o", "inspect", "Inspect", id="panel.inspect"),
        Binding("escape", "close", "Close", id="panel.close"),
    ]

    class Acted(Message):
        """Something is to be done with a memory: `forget`, `pin`, `copy`, `without` or `inspect`."""

        def __init__(self, action: str, memory: "Memory") -> None:
            super().__init__()
            self.action = action
            self.memory = memory

    class Closed(Message):
        """The panel is to go."""

    def __init__(self) -> None:
        super().__init__(id="memories")
        self.exchange_id: str | None = None

    def compose(self) -> ComposeResult:
        yield Static(classes="title", markup=False)
        yield VerticalScroll(can_focus=False)

    async def show(
        self,
        exchange_id: str | None,
        found: "Sequence[RecalledMemory]",
        sessions: Mapping[str, str],
        made_with: int,
    ) -> None:
        """The memories of one reply; `sessions` are titles by id."""
        self.exchange_id = exchange_id
        gone = made_with - len(found)
        title = f"{count_of(len(found))} of this reply" + (f", {gone} forgotten since" if gone > 0 else "")
        self.query_one(".title", Static).update(title)
        column = self.query_one(VerticalScroll)
        await column.remove_children()
        await column.mount(
            *(Recalled(each, sessions.get(each.memory.session_id or "", "")) for each in found)
        )
        column.scroll_home(animate=False)
        self.display = True
        cards = self.cards
        if cards:
            cards[0].focus()

    @property
    def cards(self) -> list[Recalled]:
        return list(self.query(Recalled))

    @property
    def current(self) -> Recalled | None:
        return next((card for card in self.cards if card.has_focus), None)

    def action_step(self, by: int) -> None:
        cards = self.cards
        if cards:
            at = cards.index(self.current) if self.current else 0
            cards[min(max(at + by, 0), len(cards) - 1)].focus()

    def action_forget(self) -> None:
        self._act("forget")

    def action_pin(self) -> None:
        self._act("pin")

    def action_copy(self) -> None:
        self._act("copy")

    def action_inspect(self) -> None:
        self._act("inspect")

    def action_without(self) -> None:
        self._act("without")

    def action_close(self) -> None:
        self.post_message(self.Closed())

    def _act(self, action: str) -> None:
        if self.current is not None:
            self.post_message(self.Acted(action, self.current.recalled.memory))
