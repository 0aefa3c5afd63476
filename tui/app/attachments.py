"""What goes along with a message: large pastes and text files, each a chip above the prompt."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.message import Message
from textual.widgets import Static

from mnemos.errors import InvalidTextError, NotFoundError
from mnemos.tui.console import visible

MAX_BYTES = 64 * 1024  # of a file that goes into a message; the model's window is the tighter bound
COMPLETED = 50  # paths that are offered at once
_SCANNED = 5_000  # entries of a folder that are looked at


@dataclass(frozen=True, slots=True)
class Attachment:
    """A text that is sent with a message; without a name, it was pasted."""

    text: str
    name: str = ""

    @property
    def label(self) -> str:
        return f"{self.name or 'pasted text'}, {size_of(self.text)}"

    @property
    def words(self) -> str:
        """As it stands in the message."""
        return f"[{self.name}]\n{self.text}" if self.name else self.text


def size_of(text: str) -> str:
    """How much a text is: lines where it has several."""
    lines = text.count("\n") + 1
    return f"{lines:,} lines" if lines > 1 else f"{len(text):,} characters"


def read_file(named: str) -> Attachment:
    """A text file. NotFoundError, InvalidTextError: what is no text or too large is not attached."""
    try:
        path = Path(named).expanduser()
        if path.is_dir():
            raise InvalidTextError(f"{named} is a folder; /ingest {named} remembers its text files")
        if not path.is_file():
            raise NotFoundError(f"there is no file {named}; nothing was attached")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InvalidTextError(
                f"{named} has {size / 1024:,.0f} KiB, and a message takes {MAX_BYTES // 1024}; "
                f"/ingest {named} remembers it as a document"
            )
        data = path.read_bytes()
    except (OSError, ValueError, RuntimeError) as error:  # no such home, or a character that no path has
        reason = getattr(error, "strerror", None) or "it is no path"
        raise NotFoundError(f"{named} can't be read ({reason}); nothing was attached") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise InvalidTextError(f"{named} is no text (it is not UTF-8); nothing was attached")
    if not text.strip():
        raise InvalidTextError(f"{named} is empty; nothing was attached")
    return Attachment(text, path.name)


def reference_at(text: str, column: int) -> str | None:
    """The path that is being written behind an `@`, up to the cursor in a line; None where there is none."""
    before = text[:column]
    at = before.rfind("@")
    if at < 0 or (at and not before[at - 1].isspace()):
        return None
    written = before[at + 1 :]
    return None if written.startswith(" ") or "\n" in written else written


def matching_paths(written: str) -> Iterator[str]:
    """Paths that go on as written, folders with a slash at their end; hidden ones only where asked for."""
    folder, slash, name = written.rpartition("/")
    found: list[tuple[bool, str]] = []
    try:
        place = Path(f"{folder}{slash}" or ".").expanduser()
        with os.scandir(place) as entries:
            for _, entry in zip(range(_SCANNED), entries, strict=False):
                fits = entry.name.casefold().startswith(name.casefold())
                if fits and (name.startswith(".") or not entry.name.startswith(".")):
                    found.append((entry.is_dir(), entry.name))
    except (OSError, ValueError, RuntimeError):  # nothing there that could be named
        return
    for is_folder, each in sorted(found, key=lambda item: (not item[0], item[1].casefold()))[:COMPLETED]:
        yield f"{folder}{slash}{each}{'/' if is_folder else ''}"


class Chip(Static, can_focus=True):
    """One attachment. It can be taken away, or put into the prompt as text."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("delete,backspace,x", "act('remove')", "Remove", id="attachment.remove"),
        Binding("enter", "act('expand')", "Expand", id="attachment.expand"),
        Binding("left", "app.focus_previous", "Before", show=False),
        Binding("right", "app.focus_next", "Next", show=False),
        Binding("escape,down", "act('leave')", "Prompt", id="attachment.leave"),
    ]

    class Acted(Message):
        """`remove`, `expand` or `leave`."""

        def __init__(self, action: str, chip: "Chip") -> None:
            super().__init__()
            self.action, self.chip = action, chip

    def __init__(self, attachment: Attachment) -> None:
        super().__init__(f"▤ {visible(attachment.label)}  ✕", markup=False, classes="attachment")
        self.attachment = attachment

    def action_act(self, action: str) -> None:
        self.post_message(self.Acted(action, self))

    def on_click(self) -> None:
        self.action_act("remove")


class Attachments(Horizontal):
    """The chips, in a row."""

    def __init__(self) -> None:
        super().__init__(id="attachments")
        self.items: list[Attachment] = []

    def compose(self) -> ComposeResult:
        yield from ()

    def on_mount(self) -> None:
        self.display = False

    def add(self, attachment: Attachment) -> None:
        self.items.append(attachment)
        if self.is_attached:  # not while the app closes
            self.mount(Chip(attachment))
        self.display = True

    def drop(self, chip: Chip | None = None) -> bool:
        """Take one away, the latest unless it is named; whether there was one."""
        chips = [each for each in self.query(Chip) if any(each.attachment is item for item in self.items)]
        if not chips:
            return False
        chip = chip or chips[-1]
        self.items = [item for item in self.items if item is not chip.attachment]
        chip.remove()
        self.display = bool(self.items)
        return True

    def clear(self) -> None:
        self.items = []
        self.query(Chip).remove()
        self.display = False
