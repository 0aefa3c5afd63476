"""What both apps share: the bank behind the screen, themes, forgetting, and how the app ends."""

import asyncio
import gc
import signal
import threading
import traceback
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual import work
from textual.app import App
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.screen import ModalScreen
from textual.theme import Theme

from mnemos.errors import BankLockedError, BankReadOnlyError, MnemosError
from mnemos.tui.app.appearance import dress, keep_theme
from mnemos.tui.app.engine import Opener, Stopped
from mnemos.tui.app.pace import Pace, PromptScreen
from mnemos.tui.app.palette import Commands
from mnemos.tui.app.themes import DARK, LIGHT

if TYPE_CHECKING:
    from mnemos.memory.bank import MemoryBank
    from mnemos.memory.records import ForgetPlan, Memory, Receipt

_TWICE_S = 2.0  # between two Ctrl+C that mean to leave


class BankReady(Message):
    """The bank is open."""


class BankFailed(Message):
    """The bank can't be opened."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


class Told(Message):
    """Something for the person, from behind the screen."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text


class MemoryApp(Pace, App[int]):
    """An app over one bank, which is opened in a thread while the screen shows already."""

    CSS_PATH = Path(__file__).with_name("styles.tcss")
    TITLE = "mnemos"
    COMMANDS: ClassVar[set[Any]] = {Commands}
    ENABLE_COMMAND_PALETTE = True
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-short"), (26, "-tall")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1", "help", "Help", id="app.help", priority=True),
        Binding("f4", "toggle_light", "Light or dark", show=False, id="app.light"),
        Binding("ctrl+c", "interrupt", "Stop", show=False, id="app.interrupt", priority=True),
        Binding("ctrl+q", "leave", "Leave", show=False, id="app.leave", priority=True),
    ]

    def __init__(self, opener: Opener, namespace: str) -> None:
        super().__init__()
        self.namespace = namespace
        self.failure: BaseException | None = None
        self.stack = ExitStack()  # what is closed after the app's end
        self.is_closing = False
        self._opener = opener
        self._bank: MemoryBank | None = None
        self._interrupted_at = float("-inf")
        self._notes = dress(self)

    # beginning and end

    def get_default_screen(self) -> PromptScreen:
        return PromptScreen(id="_default")

    @property
    def bank(self) -> "MemoryBank":
        """Raises `MnemosError` while it is still being opened."""
        if self._bank is None:
            raise MnemosError("the bank is still being opened; try again in a moment")
        return self._bank

    @property
    def is_open(self) -> bool:
        return self._bank is not None

    def on_mount(self) -> None:
        loop = asyncio.get_running_loop()
        for number, code in ((signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGHUP, 128 + signal.SIGHUP)):
            with suppress(NotImplementedError, ValueError, RuntimeError):  # Windows, and tests in threads
                loop.add_signal_handler(number, self._end_by_signal, code)
        self.call_after_refresh(self._start)
        self.call_after_refresh(self.rest_garbage)
        self.theme_changed_signal.subscribe(self, self._keep_theme)
        for note in self._notes:
            self._tell(note)

    def rest_garbage(self) -> None:
        """Look no more for garbage among what is there by now: that takes a tenth of a second, at any key."""
        gc.freeze()

    def on_unmount(self) -> None:
        gc.unfreeze()

    def _keep_theme(self, theme: Theme) -> None:
        try:
            keep_theme(theme.name)
        except (MnemosError, OSError) as error:
            self.notify(f"the theme is not kept: {words_of(error)}", severity="warning", markup=False)

    def _start(self) -> None:
        threading.Thread(target=self._open, name="bank", daemon=True).start()

    def _open(self) -> None:
        try:
            bank = self._open_or_read()
        except Exception as error:
            self.post_message(BankFailed(error))
            return
        self._bank = bank
        self.post_message(BankReady())
        with suppress(Stopped):
            self.behind(bank)

    def _open_or_read(self) -> "MemoryBank":
        """The bank; one that can't be written now is offered to be read."""
        try:
            return self.stack.enter_context(self._opener(self._ask_passphrase, self._tell))
        except (BankLockedError, BankReadOnlyError) as error:
            from mnemos.tui.app.choices import Question

            question = Question(
                "The bank can't be written now",
                f"{error}\n\nIt can be opened to be read: replies recall from it, and nothing is stored.",
                ("no", "Leave"),
                ("read", "Open read-only"),
            )
            if self._answer(question) != "read":
                raise
            return self.stack.enter_context(self._opener(self._ask_passphrase, self._tell, read_only=True))

    def _answer(self, dialog: ModalScreen[str | None]) -> str | None:
        """What the person says to a dialog. Called in the bank's thread."""
        answered, given = threading.Event(), list[str | None]()

        def take(value: str | None) -> None:
            given.append(value)
            answered.set()

        self.call_from_thread(self.push_screen, dialog, take)
        answered.wait()
        return given[0]

    def behind(self, bank: "MemoryBank") -> None:
        """What goes on in the thread once the bank is open."""

    def _tell(self, text: str) -> None:
        self.post_message(Told(text))

    def _ask_passphrase(self) -> str:
        from mnemos.tui.app.dialogs import TextDialog

        return self._answer(TextDialog("Passphrase of the bank", secret=True)) or ""

    def on_bank_failed(self, event: BankFailed) -> None:
        self.failure = event.error
        self.exit()

    async def on_told(self, event: Told) -> None:
        await self.told(event.text)

    async def told(self, text: str) -> None:
        """Say something that came from behind the screen."""
        self.notify(text, markup=False, timeout=15)

    def _end_by_signal(self, code: int) -> None:
        self.run_worker(self.leave(code), exclusive=True, group="leaving")

    async def leave(self, code: int = 0) -> None:
        """End the app; what runs is stopped and kept first."""
        self.is_closing = True
        await self.stop_turn()
        self.exit(return_code=code)

    async def stop_turn(self) -> None:
        """Stop what the agent is doing, and wait until it is kept."""

    async def action_leave(self) -> None:
        await self.leave()

    async def action_interrupt(self) -> None:
        """Ctrl+C: copy what is selected, else stop a turn, else leave at the second time."""
        selected = getattr(self.focused, "selected_text", "") or self.screen.get_selected_text()
        if selected:
            self.copy(selected)
            return
        now = asyncio.get_running_loop().time()
        if now - self._interrupted_at < _TWICE_S:
            await self.leave()
            return
        self._interrupted_at = now
        if not self.interrupt():
            self.notify("Ctrl+C again leaves", timeout=_TWICE_S)

    def interrupt(self) -> bool:
        """Stop a turn that runs; whether one did."""
        return False

    def _fatal_error(self) -> None:
        # Without the traceback that Textual prints, whose locals would hold the words of memories.
        self.failure = self._exception
        self._close_messages_no_wait()

    # what every screen can do

    def tell_error(self, error: BaseException) -> None:
        self.notify(words_of(error), severity="error", markup=False, timeout=10)

    def copy(self, text: str) -> None:
        self.copy_to_clipboard(text)  # OSC 52, to the terminal
        self._copy_to_system(text)

    @work(exclusive=True, group="clipboard")
    async def _copy_to_system(self, text: str) -> None:
        from mnemos.tui.app.clipboard import copy_to_system

        reached = await asyncio.to_thread(copy_to_system, text)
        self.notify("copied" if reached else "copied, if the terminal lets programs copy", timeout=1.5)

    async def forget(self, **selector: Any) -> "Receipt | None":
        """Plan, dialog, erase; None when nothing was forgotten. Call it in a worker."""
        try:
            plan = await asyncio.to_thread(self.bank.plan_forget, namespace=self.namespace, **selector)
        except MnemosError as error:
            self.tell_error(error)
            return None
        if not plan.selected:
            self.notify("nothing matches; nothing was forgotten", markup=False)
            return None
        from mnemos.tui.app.forget_dialog import ForgetDialog

        receipt = await self.push_screen_wait(ForgetDialog(self.bank, plan))
        if receipt is not None:
            await self.on_forgotten(plan, receipt)
        return receipt

    async def on_forgotten(self, plan: "ForgetPlan", receipt: "Receipt") -> None:
        """Take what was forgotten off the screen."""

    async def change(self, action: str, memory_id: str) -> "Memory | None":
        """`pin`, `unpin`, `hide` or `unhide` a memory."""
        return await self._changed(getattr(self.bank, action), memory_id)

    async def expire(self, memory_id: str, text: str) -> "Memory | None":
        """Set when a memory expires: an age from now, a moment, or never for an empty text."""
        from mnemos.memory import moments

        try:
            try:
                moment = datetime.now(UTC) + moments.length(text) if text else None
            except MnemosError:
                moment = moments.moment(text)
        except MnemosError as error:
            self.tell_error(error)
            return None
        return await self._changed(self.bank.expire, memory_id, moment)

    async def tag(self, memory_id: str, tags: list[str]) -> "Memory | None":
        """Give a memory these tags in the place of its own."""
        return await self._changed(self.bank.tag, memory_id, tags)

    async def _changed(self, function: Any, *args: Any) -> "Memory | None":
        def changed() -> "Memory":
            result: Memory = function(*args, namespace=self.namespace)
            return result

        try:
            return await asyncio.to_thread(changed)
        except MnemosError as error:
            self.tell_error(error)
            return None

    async def leave_inspector(self) -> None:
        await self.leave()

    def action_help(self) -> None:
        from mnemos.tui.app.help_screen import HelpScreen

        if isinstance(self.screen, HelpScreen):
            self.screen.dismiss(None)
        else:
            self.push_screen(HelpScreen())

    def action_toggle_light(self) -> None:
        self.theme = DARK.name if not self.current_theme.dark else LIGHT.name

    def actions(self) -> Mapping[str, tuple[str, str]]:
        """What the palette offers: title -> (help, action)."""
        return {
            "Help": ("Keys and commands", "help"),
            "Light or dark": ("Switch between the two themes", "toggle_light"),
            "Theme": ("Choose among all themes", "change_theme"),
            "Leave": ("Close the app", "leave"),
        }


def words_of(error: BaseException) -> str:
    """What to say about an error; never an unexpected one's own words, which may hold a memory's."""
    if isinstance(error, MnemosError):
        return str(error)
    if isinstance(error, OSError):
        return (
            f"{error.filename}: {error.strerror}"
            if error.filename
            else str(error.strerror or type(error).__name__)
        )
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"unexpected {type(error).__name__}{place}"
