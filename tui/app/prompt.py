"""The prompt: several lines, a history that is the session's own, and completion of slash commands."""

from collections.abc import Iterable
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList, Static, TextArea
from textual.widgets.option_list import Option

from mnemos.tui.app.slash import HELP, matching_commands

LARGE_PASTE_CHARS, LARGE_PASTE_LINES = 2_000, 25  # a longer paste becomes an attachment


class PromptText(TextArea):
    """Where the person writes. Enter sends; Shift+Enter and Ctrl+J break the line."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "send", "Send", id="prompt.send", priority=False),
        Binding("ctrl+j,shift+enter", "newline", "New line", id="prompt.newline", key_display="^j"),
        Binding("pageup", "app.page(-1)", "Back", show=False, id="conversation.back"),
        Binding("pagedown", "app.page(1)", "On", show=False, id="conversation.on"),
        Binding("alt+up,ctrl+up", "app.walk(-1)", "Messages", show=False, id="conversation.messages"),
        Binding("ctrl+d", "end", "Leave", show=False, id="prompt.end"),
    ]

    async def _on_key(self, event: events.Key) -> None:
        # Textual goes on to TextArea's own handler unless the default is prevented.
        if self._takes(event.key):
            event.stop()
            event.prevent_default()

    def _takes(self, key: str) -> bool:
        match key:
            case "enter":
                self.prompt.enter()
            case "ctrl+j" | "shift+enter":
                self.action_newline()
            case "escape":
                self.prompt.post_message(Prompt.Left())
            case "up" | "down" | "tab":
                return self.prompt.takes(key)
            case "backspace":
                return not self.text and self.prompt.drop_attachment()
            case _:
                return False
        return True

    async def _on_paste(self, event: events.Paste) -> None:
        if len(event.text) > LARGE_PASTE_CHARS or event.text.count("\n") >= LARGE_PASTE_LINES:
            event.stop()
            event.prevent_default()
            self.prompt.attach(event.text)

    @property
    def prompt(self) -> "Prompt":
        return self.query_ancestor(Prompt)

    def action_send(self) -> None:
        self.prompt.enter()

    def action_newline(self) -> None:
        self.insert("\n")

    def action_end(self) -> None:
        """Ctrl+D: leave when there is nothing written, else delete to the right as elsewhere."""
        if self.text or self.prompt.attachments:
            self.action_delete_right()
        else:
            self.app.run_action("leave")  # type: ignore[unused-coroutine]


class Prompt(Vertical):
    """The prompt with its attachments and completions. Posts `Sent`."""

    class Sent(Message):
        """The person sends a text."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class Left(Message):
        """Escape was pressed."""

    def __init__(self) -> None:
        super().__init__(id="prompt")
        self.history: list[str] = []  # of the session, oldest first
        self.attachments: list[str] = []
        self._at: int | None = None  # place in the history; None: what is being written
        self._draft = ""

    def compose(self) -> ComposeResult:
        yield OptionList(id="completions")
        yield Static(id="attachments", markup=False)
        yield PromptText(
            id="text",
            placeholder="Say something, or / for commands",
            highlight_cursor_line=False,
            compact=True,
        )

    def on_mount(self) -> None:
        self.completions.can_focus = False
        self.completions.display = False
        self.query_one("#attachments").display = False

    @property
    def area(self) -> PromptText:
        return self.query_one(PromptText)

    @property
    def completions(self) -> OptionList:
        return self.query_one("#completions", OptionList)

    @property
    def text(self) -> str:
        return self.area.text

    def restore(self, text: str) -> None:
        """Put a text back that could not be sent, in front of what was written since."""
        now = self.area.text
        self.write(text if not now.strip() or now == text else f"{text}\n{now}")

    def write(self, text: str) -> None:
        """Put a text into the prompt, cursor at its end."""
        self.area.load_text(text)
        self.area.move_cursor(self.area.document.end)
        self.area.focus()

    def attach(self, text: str) -> None:
        """A large paste, kept beside the prompt until it is sent."""
        self.attachments.append(text)
        self._show_attachments()

    def drop_attachment(self) -> bool:
        """Take the latest attachment away; whether there was one."""
        if not self.attachments:
            return False
        self.attachments.pop()
        self._show_attachments()
        return True

    def enter(self) -> None:
        """Enter: finish a command's name, or send."""
        text = self.area.text
        if self.completions.display and (name := self._completed()) and text.strip() not in HELP_NAMES:
            self.write(name)
            return
        whole = "\n\n".join([*([text] if text.strip() else []), *self.attachments])
        if not whole.strip():
            return
        self.attachments.clear()
        self._show_attachments()
        self._at, self._draft = None, ""
        self.area.load_text("")
        self.post_message(self.Sent(whole))

    def takes(self, key: str) -> bool:
        """Whether `up`, `down` or `tab` meant the completions or the history."""
        if self.completions.display:
            if key == "tab":
                if name := self._completed():
                    self.write(name)
            elif key == "up":
                self.completions.action_cursor_up()
            else:
                self.completions.action_cursor_down()
            return True
        row, last = self.area.cursor_location[0], self.area.document.line_count - 1
        if key == "up" and row == 0:
            return self._step(-1)
        if key == "down" and row == last and self._at is not None:
            return self._step(1)
        return False

    def close_completions(self) -> bool:
        """Hide the list of commands; whether it was there."""
        shown, self.completions.display = self.completions.display, False
        return bool(shown)

    def _step(self, by: int) -> bool:
        if not self.history:
            return False
        if self._at is None:
            self._draft, self._at = self.area.text, len(self.history)
        at = max(self._at + by, 0)
        if at >= len(self.history):
            self._at = None
            self.write(self._draft)
        else:
            self._at = at
            self.write(self.history[at])
        return True

    def _completed(self) -> str | None:
        at = self.completions.highlighted
        option = self.completions.get_option_at_index(at) if at is not None else None
        return f"{option.id} " if option and option.id else None

    def on_text_area_changed(self) -> None:
        text = self.area.text
        found = list(matching_commands(text)) if text.startswith("/") and self._at is None else []
        self._offer(found)

    def _offer(self, found: Iterable[str]) -> None:
        names = list(found)
        self.completions.display = bool(names)
        if names:
            self.completions.clear_options()
            self.completions.add_options([Option(_line(name), id=f"/{name}") for name in names])
            self.completions.highlighted = 0

    def _show_attachments(self) -> None:
        shown = self.query_one("#attachments", Static)
        shown.display = bool(self.attachments)
        shown.update("  ".join(f"[pasted text, {size_of(text)}]" for text in self.attachments))


def _line(name: str) -> Content:
    usage, what = HELP[name]
    return Content.assemble(f"{usage:<36} ", (what, "dim"))


HELP_NAMES = frozenset(f"/{name}" for name in HELP)


def size_of(text: str) -> str:
    """How much a pasted text is: lines where it has several."""
    lines = text.count("\n") + 1
    return f"{lines:,} lines" if lines > 1 else f"{len(text):,} characters"
