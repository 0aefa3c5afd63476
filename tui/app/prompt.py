"""The prompt: several lines, a history that is the session's own, and completion of slash commands."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.geometry import Region
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widgets import OptionList, Static, TextArea
from textual.widgets.option_list import Option

from mnemos.errors import MnemosError
from mnemos.tui.app.attachments import (
    Attachment,
    Attachments,
    Chip,
    matching_paths,
    read_file,
    reference_at,
)
from mnemos.tui.app.slash import HELP, matching_commands
from mnemos.tui.console import visible

if TYPE_CHECKING:
    from mnemos.tui.app.conversation import Said

LARGE_PASTE_CHARS, LARGE_PASTE_LINES = 2_000, 25  # a longer paste becomes an attachment
EXPANDED_CHARS = 200_000  # of an attachment that the prompt takes as text
_BLINKS = 20  # of the cursor, half a second each
PLACEHOLDER = "Say something, @ to attach a file, or / for commands"


def is_large(text: str) -> bool:
    return len(text) > LARGE_PASTE_CHARS or text.count("\n") >= LARGE_PASTE_LINES


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

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._has_theme = False  # since the styles changed
        self._blinks = 0  # since the last key

    def notify_style_update(self) -> None:
        self._has_theme = False
        super().notify_style_update()

    def render_lines(self, crop: Region) -> list[Strip]:
        if self._has_theme:  # TextArea works its theme out from the styles for every letter
            return ScrollView.render_lines(self, crop)
        self._has_theme = True
        return super().render_lines(crop)

    def _restart_blink(self) -> None:
        self._blinks = 0
        super()._restart_blink()

    def _toggle_cursor_blink_visible(self) -> None:
        """A cursor that nobody moves comes to rest, so that an idle app has nothing to do."""
        self._blinks += 1
        if self._blinks > _BLINKS and self._cursor_visible:
            self._pause_blink(visible=True)
        else:
            super()._toggle_cursor_blink_visible()

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
            case "up" | "down" | "tab" | "shift+tab":
                return self.prompt.takes(key)
            case "backspace":
                return not self.text and self.prompt.drop_attachment()
            case _:
                return False
        return True

    async def _on_paste(self, event: events.Paste) -> None:
        if is_large(event.text):
            event.stop()
            event.prevent_default()
            self.prompt.attach(Attachment(event.text))

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

        def __init__(self, text: str, instead_of: "Said | None" = None) -> None:
            super().__init__()
            self.text = text
            self.instead_of = instead_of  # an earlier message that was edited

    class Left(Message):
        """Escape was pressed."""

    def __init__(self) -> None:
        super().__init__(id="prompt")
        self.history: list[str] = []  # of the session, oldest first
        self.editing: Said | None = None  # an earlier message that is being written anew
        self._is_incognito = False
        self._at: int | None = None  # place in the history; None: what is being written
        self._draft = ""

    def compose(self) -> ComposeResult:
        yield OptionList(id="completions")
        yield Static(id="mode", markup=False)
        yield Attachments()
        yield PromptText(
            id="text",
            placeholder=PLACEHOLDER,
            highlight_cursor_line=False,
            compact=True,
        )

    def on_mount(self) -> None:
        self.completions.can_focus = False
        self.completions.display = False
        self._show_mode()

    @property
    def area(self) -> PromptText:
        return self.query_one(PromptText)

    @property
    def completions(self) -> OptionList:
        return self.query_one("#completions", OptionList)

    @property
    def text(self) -> str:
        return self.area.text

    @property
    def attachments(self) -> list[Attachment]:
        return self.query_one(Attachments).items

    def edit(self, said: "Said") -> None:
        """Write an earlier message anew; what is sent goes into a branch."""
        self.editing = said if said.exchange_id else None
        self.query_one(Attachments).clear()
        self.write("")
        self.restore(said.words)
        self._show_mode()

    def stop_editing(self) -> bool:
        """Leave an earlier message as it was; whether one was being edited."""
        if self.editing is None:
            return False
        self.editing = None
        self.query_one(Attachments).clear()
        self.write("")
        self._show_mode()
        return True

    def set_incognito(self, on: bool) -> None:
        self._is_incognito = on
        self.set_class(on, "-incognito")
        self.area.placeholder = "Say something that is not stored" if on else PLACEHOLDER

    def _show_mode(self) -> None:
        mode = self.query_one("#mode", Static)
        mode.display = self.editing is not None
        if self.editing is not None:
            mode.update("Editing an earlier message. Enter sends it in a branch, Esc leaves it as it was")

    def _warn(self, text: str) -> None:
        """Say something beside the prompt until it is written in."""
        mode = self.query_one("#mode", Static)
        mode.display = True
        mode.update(visible(text))

    def restore(self, text: str) -> None:
        """Put a text back that could not be sent, in front of what was written since."""
        if is_large(text):
            self.attach(Attachment(text))
            return
        now = self.area.text
        self.write(text if not now.strip() or now == text else f"{text}\n{now}")

    def write(self, text: str) -> None:
        """Put a text into the prompt, cursor at its end."""
        self.area.load_text(text)
        self.area.move_cursor(self.area.document.end)
        self.area.focus()

    def attach(self, attachment: Attachment) -> None:
        """A large paste or a file, kept beside the prompt until it is sent."""
        self.query_one(Attachments).add(attachment)

    def drop_attachment(self) -> bool:
        """Take the latest attachment away; whether there was one."""
        return self.query_one(Attachments).drop()

    def on_chip_acted(self, event: Chip.Acted) -> None:
        """Take an attachment away, or put its words into the text."""
        event.stop()
        text = event.chip.attachment.text
        if event.action == "expand" and len(text) > EXPANDED_CHARS:
            self._warn("it is too large to be shown as text; it is sent as it is")
            return
        if event.action != "leave":
            self.query_one(Attachments).drop(event.chip)
        if event.action == "expand":
            self.area.insert(text)
        self.area.focus()

    def enter(self) -> None:
        """Enter: finish a command's name, or send."""
        text = self.area.text
        if self.completions.display and self._completed() and text.strip() not in HELP_NAMES:
            self._complete()
            return
        whole = "\n\n".join([*([text] if text.strip() else []), *(each.words for each in self.attachments)])
        if not whole.strip():
            return
        instead_of, self.editing = self.editing, None
        self._show_mode()
        self.query_one(Attachments).clear()
        self._at, self._draft = None, ""
        self.area.load_text("")
        self.post_message(self.Sent(whole, instead_of))

    def takes(self, key: str) -> bool:
        """Whether `up`, `down` or `tab` meant the completions or the history."""
        if key == "shift+tab":
            chips = self.query(Chip)
            if chips:
                chips.last().focus()
            return bool(chips)
        if self.completions.display:
            if key == "tab":
                self._complete()
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
        """Hide the list of commands or paths; whether it was there."""
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
        return f"{option.id}" if option and option.id else None

    def _complete(self) -> None:
        """Take what is highlighted: a command's name, a folder to go on from, or a file to attach."""
        chosen = self._completed()
        if chosen is None:
            return
        if chosen.startswith("/") and self._reference() is None:
            self.write(f"{chosen} ")
            return
        row, column = self.area.cursor_location
        start = (row, column - len(self._reference() or "") - 1)
        path = chosen.removeprefix("@")
        if path.endswith("/"):
            self.area.replace(f"@{path}", start, (row, column))
            return
        try:
            attachment = read_file(path)
        except MnemosError as error:
            self.completions.display = False
            self._warn(str(error))
            return
        self.area.replace("", start, (row, column))
        self.attach(attachment)

    def _reference(self) -> str | None:
        row, column = self.area.cursor_location
        return reference_at(self.area.document.get_line(row), column)

    def on_text_area_changed(self) -> None:
        text = self.area.text
        self._show_mode()
        if self._at is not None:
            self._offer(())
        elif text.startswith("/"):
            self._offer([Option(_line(name), id=f"/{name}") for name in matching_commands(text)])
        elif (written := self._reference()) is not None:
            self._offer(Option(visible(path), id=f"@{path}") for path in matching_paths(written))
        else:
            self._offer(())

    def _offer(self, found: Iterable[Option]) -> None:
        options = list(found)
        self.completions.display = bool(options)
        if options:
            self.completions.clear_options()
            self.completions.add_options(options)
            self.completions.highlighted = 0


def _line(name: str) -> Content:
    usage, what = HELP[name]
    return Content.assemble(f"{usage:<36} ", (what, "dim"))


HELP_NAMES = frozenset(f"/{name}" for name in HELP)
