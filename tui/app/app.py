"""`ChatApp`: the conversation, its sessions, and the memories behind each reply."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Static

from mnemos.errors import MnemosError
from mnemos.tui.app import branching, history, slash
from mnemos.tui.app.base import BankReady, words_of
from mnemos.tui.app.conversation import Card, Conversation, Entry, Said
from mnemos.tui.app.engine import Loaded, Loader, Opener, Talker
from mnemos.tui.app.key_bar import KeyBar
from mnemos.tui.app.loading import ModelFailed, ModelProgress, ModelReady
from mnemos.tui.app.memories_panel import MemoriesPanel
from mnemos.tui.app.prompt import Prompt
from mnemos.tui.app.remembering import Remembering
from mnemos.tui.app.sidebar import Sidebar
from mnemos.tui.app.status import Status
from mnemos.tui.app.turns import Turns

if TYPE_CHECKING:
    pass


class ChatApp(Remembering):
    """A conversation on the whole screen."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f2", "why", "Memories", id="app.why"),
        Binding("f3", "inspect", "Inspector", id="app.inspect"),
        Binding("ctrl+b", "sessions", "Sessions", id="app.sessions"),
        Binding("ctrl+n", "new_session", "New", show=False, id="app.new_session"),
        Binding("ctrl+r", "regenerate", "Again", show=False, id="app.regenerate"),
        Binding("ctrl+y", "copy_reply", "Copy reply", show=False, id="app.copy_reply"),
        Binding("escape", "escape", "Stop", id="app.stop"),
    ]

    def __init__(
        self,
        opener: Opener,
        loader: Loader,
        namespace: str,
        *,
        session: str | None = None,
        model: str | None = None,
    ) -> None:
        super().__init__(opener, namespace, loader, model)
        self.loaded: Loaded | None = None
        self.session_id: str | None = None
        self.incognito = False  # nothing of the messages from now on is stored
        self.turns = Turns(self)
        self._wanted_session = session
        self._talker: Talker | None = None
        self._is_named = False  # whether the session's own title is at the top

    def compose(self) -> ComposeResult:
        yield Static(id="top", markup=False)
        with Horizontal(id="body"):
            yield Sidebar()
            with Vertical(id="main"):
                yield Conversation()
                yield Status()
                yield Prompt()
            yield MemoriesPanel()
        yield KeyBar()

    def on_mount(self) -> None:
        self.sidebar.display = self.panel.display = False
        self.prompt.area.focus()
        self.status.working("opening the bank")
        self.show_title()

    # what comes from the thread of the bank and the model

    async def on_bank_ready(self, _event: BankReady) -> None:
        if self.bank.read_only:
            self.incognito = True
            self.prompt.set_incognito(True)
            self.show_model()
        if self._is_loading:
            self.status.working("loading the model")
        if self._wanted_session is None:
            self._welcome()
            return
        try:
            found = await asyncio.to_thread(
                self.bank.get_session, self._wanted_session, namespace=self.namespace
            )
            await self.switch(found.id)
        except MnemosError as error:
            self.failure = error
            self.exit()

    @work(group="welcome")
    async def _welcome(self) -> None:
        with suppress(MnemosError):  # a bank that can't be counted says so when it is used
            await self.conversation.welcome(await asyncio.to_thread(self.bank.count, self.namespace))

    def on_model_progress(self, event: ModelProgress) -> None:
        if self._is_loading:
            self.status.working(event.words)

    def on_model_ready(self, event: ModelReady) -> None:
        self._is_loading, self.loaded, self._talker = False, event.loaded, None
        self.status.idle()
        self.show_model()
        self.rest_garbage()
        if event.loaded.note:
            self.notify(event.loaded.note, markup=False)
        self.turns.go_on()

    async def on_model_failed(self, event: ModelFailed) -> None:
        self._is_loading = False
        self.status.idle()
        kept = "" if self.loaded is None else f". {self.loaded.name} goes on"
        hint = " (/model tries again, /model NAME another)" if self.loaded is None else ""
        await self.conversation.put(
            Card(f"the model can't be loaded: {words_of(event.error)}{kept}{hint}", error=True)
        )
        if self.loaded is None:
            await self.turns.take_back()

    async def told(self, text: str) -> None:
        await self.conversation.put(Card(text))

    def change_model(self, name: str | None) -> None:
        """Load another model, or the same again where it failed; without a name, say which there is."""
        if name is None and self.loaded is not None:
            self.run_worker(self.conversation.put(Card(f"the model is {self.loaded.name}")))
        elif not self._is_loading:
            self.status.working("loading the model")
            self.load_behind(name)

    def talker(self) -> Talker:
        """The agent of the session."""
        assert self.loaded is not None, "turns wait for the model"
        if self._talker is None:
            self._talker = self.loaded.agents(self.namespace, self.session_id)
        return self._talker

    def note_session(self, talker: Talker) -> None:
        """A first turn begins a session."""
        if (
            self.session_id is None
            and talker is self._talker
            and any(e.exchange_id for e in self.conversation.entries)
        ):
            self.session_id = talker.session_id
            self.show_title()
        elif not self._is_named:
            self.show_title()  # a branch that began without turns
        else:
            self.run_worker(branching.show_ways(self), exclusive=True, group="ways")

    # the conversation

    def show_model(self) -> None:
        """At the end of the status line: the model, and whether what is said is stored."""
        model = self.loaded.name if self.loaded else ""
        mark = "read-only" if self.is_open and self.bank.read_only else "incognito" if self.incognito else ""
        self.status.right(model, mark=mark)

    async def on_prompt_sent(self, event: Prompt.Sent) -> None:
        if event.instead_of is not None:
            self._resend(event.instead_of, event.text)
        elif slash.read(event.text) is None:
            if self.loaded is None and not self._is_loading:
                self.prompt.restore(event.text)
                await self.conversation.put(Card("there is no model yet; /model tries again", error=True))
                return
            await self.turns.send(slash.message(event.text))
        else:
            self._execute(event.text)

    @work(group="command")
    async def _execute(self, line: str) -> None:
        from mnemos.tui.app import commands

        try:
            await commands.execute(self, line)
        except MnemosError as error:
            self.prompt.restore(line)
            await self.conversation.put(Card(str(error), error=True))

    def on_entry_copied(self, event: Entry.Copied) -> None:
        self.copy(event.words)

    async def on_entry_left(self) -> None:
        self.prompt.area.focus()

    async def on_prompt_left(self) -> None:
        await self.action_escape()

    @work(group="command")
    async def _resend(self, said: Said, text: str) -> None:
        try:
            await branching.resend(self, said, text)
        except MnemosError as error:
            self.prompt.restore(text)
            await self.conversation.put(Card(str(error), error=True))

    @work(group="command")
    async def on_entry_asked(self, event: Entry.Asked) -> None:
        try:
            await branching.act(self, event)
        except MnemosError as error:
            self.tell_error(error)

    @work(group="command")
    async def action_regenerate(self) -> None:
        try:
            await branching.regenerate(self)
        except MnemosError as error:
            self.tell_error(error)

    @work(group="command")
    async def action_branch(self) -> None:
        try:
            await branching.branch(self, None)
        except MnemosError as error:
            self.tell_error(error)

    async def action_incognito(self) -> None:
        from mnemos.tui.app import keeping

        try:
            await keeping.toggle_incognito(self)
        except MnemosError as error:
            self.tell_error(error)

    @work(exclusive=True, group="namespace")
    async def action_namespace(self) -> None:
        from mnemos.tui.app import keeping

        await keeping.choose_namespace(self)

    def action_page(self, by: int) -> None:
        if by < 0:
            self.conversation.scroll_page_up(animate=False)
        else:
            self.conversation.scroll_page_down(animate=False)

    def action_walk(self, by: int) -> None:
        if not self.conversation.walk(by) and by > 0:
            self.prompt.area.focus()

    def action_walk_to(self, at: int) -> None:
        self.conversation.walk_to(at)

    def action_copy_reply(self) -> None:
        words = [answer.words for answer in self.conversation.answers if answer.words]
        if words:
            self.copy(words[-1])

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if len(self.screen_stack) > 1 and action in (
            "why",
            "inspect",
            "sessions",
            "new_session",
            "escape",
            "walk",
        ):
            return False
        if action == "escape":  # in the footer where there is something to stop; the prompt's own key stays
            return self.turns.is_running or bool(self.turns.waiting)
        return True

    def interrupt(self) -> bool:
        if self.turns.waiting and not self.turns.is_running:  # the model loads: the message is not lost
            self.run_worker(self.turns.take_back())
            return True
        return self.turns.stop()

    async def stop_turn(self) -> None:
        await self.turns.stopped()

    async def action_escape(self) -> None:
        """Close what is open, stop the turn, or take back what waits; then the prompt has the focus."""
        if self.prompt.close_completions() or self.prompt.stop_editing():
            return
        if self.panel.display or self.sidebar.display:
            self.panel.display = self.sidebar.display = False
        elif not self.turns.stop():
            await self.turns.take_back()
        self.prompt.area.focus()

    # sessions

    async def switch(self, session_id: str | None) -> None:
        """Go on with another session; None: one that begins with the next message."""
        await self.turns.stopped()
        await self.turns.take_back()
        self.session_id, self._talker = session_id, None
        self.panel.display = False
        if not self._is_loading:
            self.status.idle()
        shown = (
            await asyncio.to_thread(history.exchanges, self.bank, self.namespace, session_id)
            if session_id
            else []
        )
        await self.conversation.show(shown)
        if session_id is None:
            self._welcome()
        self.prompt.history = [memory.text for memory in shown]
        self.prompt.area.focus()
        self.show_title()
        self.refresh_marks()

    @work(exclusive=True, group="title")
    async def show_title(self) -> None:
        """The line at the top: the session's name, and whose memory it is."""
        name, self._is_named = "new conversation", False
        if self.session_id is not None and self.is_open:
            lines = await asyncio.to_thread(history.lines, self.bank, self.namespace)
            titles = {line.id: line.title for line in lines}
            self._is_named = self.session_id in titles
            name = titles.get(self.session_id, name)
            self.sidebar.show(lines, self.session_id)
        whose = "" if self.namespace == "default" else f"  ·  {self.namespace}"
        self.screen_stack[0].query_one("#top", Static).update(f"mnemos  ·  {name}{whose}")
        await branching.show_ways(self)

    async def action_sessions(self, show: bool = False) -> None:
        if self.sidebar.display and not show:
            self.sidebar.display = False
            self.prompt.area.focus()
            return
        try:
            lines = await asyncio.to_thread(history.lines, self.bank, self.namespace)
        except MnemosError as error:
            self.tell_error(error)
            return
        self.sidebar.show(lines, self.session_id)
        self.sidebar.display = True
        self.sidebar.focus_list()

    def on_sidebar_closed(self) -> None:
        self.sidebar.display = False
        self.prompt.area.focus()

    async def on_sidebar_chosen(self, event: Sidebar.Chosen) -> None:
        self.sidebar.display = False
        await self.switch(event.session_id)

    @work(exclusive=True, group="rename")
    async def on_sidebar_renaming(self, event: Sidebar.Renaming) -> None:
        from mnemos.tui.app.dialogs import TextDialog

        title = await self.push_screen_wait(TextDialog("Name of the session", event.session.title))
        if title and title.strip():
            await self.rename(event.session.id, title.strip())
            await self.action_sessions(show=True)

    @work(exclusive=True, group="delete")
    async def on_sidebar_deleting(self, event: Sidebar.Deleting) -> None:
        from mnemos.tui.app import keeping

        await keeping.delete_session(self, event.session)

    async def rename(self, session_id: str, title: str) -> None:
        try:
            await asyncio.to_thread(self.bank.rename_session, session_id, title, namespace=self.namespace)
        except MnemosError as error:
            self.tell_error(error)
        self.show_title()

    async def action_new_session(self) -> None:
        await self.switch(None)

    def actions(self) -> Mapping[str, tuple[str, str]]:
        return {
            "Memories of the last reply": ("What it was made with, and why", "why"),
            "Inspector": ("Look into the memory", "inspect"),
            "Sessions": ("Show or hide the list of sessions", "sessions"),
            "New session": ("Begin a conversation", "new_session"),
            "Stop": ("Stop the reply", "escape"),
            "Make the last reply again": ("In a branch; the earlier one is kept", "regenerate"),
            "Branch": ("Go on from here in a session of its own", "branch"),
            "Incognito": ("Store nothing of what is said, or all again", "incognito"),
            "Namespace": ("Go on with other memories", "namespace"),
            "Copy the last reply": ("To the clipboard", "copy_reply"),
            **super().actions(),
        }
