"""Help over the screen: keys and slash commands."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from mnemos.tui.app.prose import Prose
from mnemos.tui.app.slash import HELP

KEYS = """
| Key | Does |
|---|---|
| Enter | sends; Shift+Enter and Ctrl+J break the line |
| Up, Down | earlier messages of the session, at the first and last line |
| Esc | stops the reply; takes back a message that waits; closes what is open |
| F2 | memories of the last reply: `f` forgets, `p` pins, `w` answers without it, `c` copies, `o` inspects |
| F3 | the inspector: all memories, with a filter |
| Ctrl+B | sessions: Enter switches, `n` begins one, `r` renames, `d` deletes, `/` searches |
| Ctrl+R | makes the last reply again, in a branch; Left and Right on a reply go to the other one |
| @ | attaches a file; Shift+Tab goes to the attachments: `x` removes, Enter expands |
| Ctrl+N | a new session |
| Ctrl+Up | walks through the messages: `c` copies, `b` copies code, `e` edits, `m` memories |
| | `r` makes the reply again, `n` branches from there, Enter unfolds a long message |
| PageUp, PageDown | scroll |
| Ctrl+Y | copies the last reply |
| Ctrl+P | every command |
| F4 | light or dark |
| Ctrl+C | copies what is selected, or stops the reply; twice leaves. Ctrl+Q leaves at once |

In the inspector: Space marks, `f` forgets, `h` hides, `p` pins, `x` sets an expiry, `/` filters by words or
by a selector such as `tag:work and since:3d`, `Enter` shows the words, `t` tags, `e` exports, `s` sorts, `d`
chooses days, `m` shows the map. What is forgotten is gone for good; hidden memories can be shown again.
"""


class HelpScreen(ModalScreen[None]):
    """Keys and slash commands."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,f1,q,enter", "dismiss(None)", "Close")]

    def compose(self) -> ComposeResult:
        lines = "\n".join(
            f"| `{usage.replace('|', chr(92) + '|')}` | {what} |" for usage, what in HELP.values()
        )
        commands = f"| Command | Does |\n|---|---|\n{lines}\n| `//...` | a message that starts with a slash |"
        with Vertical(classes="dialog -large"):
            yield Static("Help  (Esc closes)", classes="title")
            with VerticalScroll():
                yield Prose(f"{KEYS}\n{commands}")

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()
