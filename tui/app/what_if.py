"""A reply beside the one that would have come without a memory. Nothing of it is stored."""

from contextlib import aclosing
from typing import TYPE_CHECKING, ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from mnemos.tui.app.base import words_of
from mnemos.tui.app.conversation import count_of
from mnemos.tui.app.prose import Prose
from mnemos.tui.console import visible

if TYPE_CHECKING:
    from mnemos.memory.records import Memory
    from mnemos.tui.app.engine import Talker


class WhatIf(ModalScreen[None]):
    """Both replies side by side, one under the other where the terminal is narrow."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,enter", "dismiss(None)", "Close")]

    def __init__(self, talker: "Talker", exchange: "Memory", memory: "Memory", memories: int) -> None:
        super().__init__()
        self._talker, self._exchange, self._memory, self._memories = talker, exchange, memory, memories
        self.words = ""  # of the reply without the memory
        self.is_over = False

    def compose(self) -> ComposeResult:
        without = " ".join(self._memory.text.split())
        with Vertical(classes="dialog -large"):
            yield Static(f"Without: {visible(without)}", classes="title -line", markup=False)
            with Horizontal(id="replies"):
                with VerticalScroll(classes="reply"):
                    yield Static(f"As it was, with {count_of(self._memories)}", classes="hint", markup=False)
                    yield Prose(visible(self._exchange.reply or "", keep="\n\t"))
                with VerticalScroll(classes="reply"):
                    yield Static("recalling", id="how", classes="hint", markup=False)
                    yield Prose(id="again")
            yield Static("Nothing of this is stored. Esc closes.", classes="hint")

    def on_mount(self) -> None:
        self._run()

    @work(exclusive=True)
    async def _run(self) -> None:
        from mnemos.agent.events import Recalled, Reply, TokenDelta  # late: pydantic is slow

        how, again = self.query_one("#how", Static), self.query_one("#again", Prose)
        events = self._talker.what_if(self._exchange.id, without=[self._memory.id])
        try:
            async with aclosing(events):  # type: ignore[type-var]
                async for event in events:
                    if isinstance(event, Recalled):
                        how.update(f"Without it, with {count_of(len(event.memories))}")
                    elif isinstance(event, TokenDelta):
                        self.words += event.text
                        again.add(visible(event.text, keep="\n\t"))
                    elif isinstance(event, Reply):
                        self.words = event.text
            if self.words.strip() == (self._exchange.reply or "").strip():
                how.update(f"{how.content}: the same reply")
        except Exception as error:  # said on the screen, as a turn's is in the conversation
            how.update(f"not made: {words_of(error)}")
        again.update(visible(self.words, keep="\n\t"))
        self.is_over = True
