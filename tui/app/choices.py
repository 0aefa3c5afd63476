"""Questions with more than one answer: what becomes of a session, which namespace."""

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Input, OptionList, Static
from textual.widgets.option_list import Option

from mnemos.tui.console import visible


class Question(ModalScreen[str | None]):
    """A question with buttons. The first is the one that changes nothing, and has the focus."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "No"),
        Binding("n", "dismiss(None)", "No", show=False),
        Binding("left,up", "step(-1)", "Other button", show=False),
        Binding("right,down", "step(1)", "Other button", show=False),
    ]

    def __init__(self, title: str, text: str, *answers: tuple[str, str]) -> None:
        super().__init__()
        self._title, self._text, self._answers = title, text, answers

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(visible(self._title), classes="title", markup=False)
            yield Static(visible(self._text, keep="\n"), classes="hint", markup=False)
            with Horizontal(classes="buttons -many" if len(self._answers) > 2 else "buttons"):
                for name, label in self._answers:
                    yield Button(label, id=name, compact=True)

    def on_mount(self) -> None:
        self.query(Button).first().focus()

    def action_step(self, by: int) -> None:
        buttons = list(self.query(Button))
        at = next((at for at, button in enumerate(buttons) if button.has_focus), 0)
        buttons[(at + by) % len(buttons)].focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        first = self._answers[0][0]
        self.dismiss(None if event.button.id == first else event.button.id)


def deleting(title: str, memories: int, turns: int) -> Question:
    """What becomes of a session: it goes `alone` or as a `whole`, with its memories; None keeps it."""
    what = "1 memory was" if memories == 1 else f"{memories:,} memories were"
    text = (
        f"{what} made in it, of {turns} turn{'' if turns == 1 else 's'}.\n\n"
        "Without them only the session goes: what was said in it is recalled as before. With them they are "
        "forgotten for good, and so are replies elsewhere that were made with them; the plan is shown first."
    )
    answers = [("no", "No, keep"), ("alone", "Only the session"), ("whole", "With its memories")]
    return Question(f"Delete “{title}”?", text, *(answers if memories else answers[:2]))


class NamespaceDialog(ModalScreen[str | None]):
    """Which namespace to go on in: one of those there are, or a new one."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Cancel"),
        Binding("down", "focus_list", "List", show=False),
    ]

    def __init__(self, names: Sequence[tuple[str, int]], current: str) -> None:
        super().__init__()
        self._names, self._current = names, current

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static("Namespace", classes="title")
            yield Input(placeholder="Search, or the name of a new one")
            yield OptionList()
            yield Static("Each namespace has memories of its own; none sees another's.", classes="hint")

    def on_mount(self) -> None:
        self._fill("")
        self.query_one(OptionList).focus()

    def _fill(self, words: str) -> None:
        options = self.query_one(OptionList)
        options.clear_options()
        shown = [each for each in self._names if words.casefold() in each[0].casefold()]
        for name, count in shown:
            mark = "● " if name == self._current else "  "
            memories = f"{count:,} memor{'y' if count == 1 else 'ies'}"
            options.add_option(
                Option(Content.assemble(f"{mark}{visible(name):<30} ", (memories, "dim")), id=name)
            )
        options.display = bool(shown)
        names = [name for name, _ in shown]
        if names:
            options.highlighted = names.index(self._current) if self._current in names else 0

    def on_input_changed(self, event: Input.Changed) -> None:
        self._fill(event.value.strip())

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value.strip() or None)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option.id)

    def action_focus_list(self) -> None:
        self.query_one(OptionList).focus()
