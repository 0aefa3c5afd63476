"""The dialog of an erase: what would go, a question whose answer is No by default, its steps, its receipt."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static

from mnemos.errors import MnemosError
from mnemos.tui import receipts
from mnemos.tui.console import visible
from mnemos.tui.forget import summary
from mnemos.tui.recollections import one_line

if TYPE_CHECKING:
    from mnemos.memory.bank import MemoryBank
    from mnemos.memory.records import ForgetPlan, Receipt

SHOWN = 50  # memories of a plan that are shown one by one


class ForgetDialog(ModalScreen["Receipt | None"]):
    """Shows a plan and carries it out. Ends with the receipt, or None when nothing was forgotten."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "No"),
        Binding("n", "leave", "No", show=False),
        Binding("left,right,up,down", "other", "Other button", show=False),
    ]

    def __init__(self, bank: "MemoryBank", plan: "ForgetPlan") -> None:
        super().__init__()
        self._bank, self._plan = bank, plan
        self._receipt: Receipt | None = None
        self._is_running = False
        self._by_name = plan.takes_all and len(plan.selected) > 1

    def compose(self) -> ComposeResult:
        plan = self._plan
        with Vertical(classes="dialog"):
            yield Static("Forget for good?", classes="title")
            with VerticalScroll(classes="plan", can_focus=False):
                for memory in plan.selected[:SHOWN]:
                    yield Static(f"  {visible(one_line(memory))}", classes="line -selected", markup=False)
                for memory in plan.dependants[:SHOWN]:
                    words = f"  reply to: {visible(one_line(memory))}"
                    yield Static(words, classes="line -dependant", markup=False)
                rest = max(len(plan.selected) - SHOWN, 0) + max(len(plan.dependants) - SHOWN, 0)
                if rest:
                    yield Static(f"  and {rest:,} more", classes="line", markup=False)
            yield Static(self._explanation(), classes="hint", markup=False)
            if self._by_name:
                yield Input(placeholder=f"type {plan.namespace} to forget all of it", id="name")
            yield Static("", id="steps", markup=False)
            with Horizontal(classes="buttons"):
                yield Button("No, keep", id="no", compact=True)
                yield Button("Forget", id="yes", compact=True, variant="error")
                yield Button("Save receipt", id="save", compact=True)
                yield Button("Close", id="close", compact=True)

    def _explanation(self) -> str:
        words = f"{summary(self._plan)}."
        if self._plan.dependants:
            words += " Your own words in those turns stay; the replies lose theirs."
        if self._by_name:
            words += f" That is every memory in '{self._plan.namespace}'."
        return words

    def on_mount(self) -> None:
        self.query_one("#steps").display = False
        self._show_buttons("no", "yes")

    def _show_buttons(self, *names: str) -> None:
        for button in self.query(Button):
            button.display = button.id in names
        if names:
            self.query_one(f"#{names[0]}").focus()

    def action_other(self) -> None:
        shown = [button for button in self.query(Button) if button.display]
        at = next((at for at, button in enumerate(shown) if button.has_focus), -1)
        if shown:
            shown[(at + 1) % len(shown)].focus()

    def action_leave(self) -> None:
        """No; an erase that runs can't be left."""
        if not self._is_running:
            self.dismiss(self._receipt)

    def on_input_submitted(self) -> None:
        self.query_one("#yes").focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        match event.button.id:
            case "yes":
                if self._by_name and self.query_one("#name", Input).value != self._plan.namespace:
                    self._say("type the namespace's name first")
                    self.query_one("#name").focus()
                else:
                    self._erase()
            case "save":
                self._save()
            case _:
                self.action_leave()

    def _say(self, text: str) -> None:
        steps = self.query_one("#steps", Static)
        steps.display = True
        steps.update(text)

    @work(exclusive=True)
    async def _erase(self) -> None:
        self._is_running = True
        self._show_buttons()
        done: list[str] = []

        def on_step(step: str) -> None:
            done.append(step)
            self.app.call_from_thread(self._say, "\n".join(f"✓ {each}" for each in done))

        try:
            receipt = await asyncio.to_thread(self._bank.forget, self._plan, on_step=on_step)
        except MnemosError as error:
            self._is_running = False
            self._say(f"not forgotten: {error}")
            self._show_buttons("close")
            return
        self._is_running, self._receipt = False, receipt
        self.query_one(".title", Static).update("Forgotten for good")
        self.query_one(".plan").remove()
        self._say(f"✓ {'  ✓ '.join(done)}\n\nreceipt {receipt.id}")
        self._show_buttons("close", "save")

    def _save(self) -> None:
        assert self._receipt is not None
        file = Path.cwd() / f"receipt-{self._receipt.id[:8]}.json"
        try:
            receipts.write(self._receipt.document, file)
        except OSError as error:
            self.notify(f"not saved: {error.strerror}", severity="error", markup=False)
            return
        self.notify(f"saved as {file.name} in this folder", markup=False)
        self._show_buttons("close")
