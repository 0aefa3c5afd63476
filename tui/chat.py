"""`mnemos chat`: the app on a terminal; elsewhere, and with `--plain`, a conversation a line a turn."""

import os
import sys
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from mnemos.errors import MnemosError
from mnemos.tui import console
from mnemos.tui.options import Bank, Json, MaxTokens, Model, Namespace, Session

if TYPE_CHECKING:
    from mnemos.agent.agent import Agent
    from mnemos.agent.events import Reply
    from mnemos.attention.models import LanguageModel
    from mnemos.memory.bank import MemoryBank


def chat(
    session: Session = None,
    max_tokens: MaxTokens = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="A line a turn, for screen readers and simple terminals.")
    ] = False,
    model: Model = None,
    bank: Bank = None,
    namespace: Namespace = "default",
    json: Json = False,
) -> None:
    """Talk with an agent that remembers from one conversation to the next. /help lists its commands."""
    if not (plain or json) and has_screen():
        from mnemos.store.ids import check_namespace
        from mnemos.tui.app.app import ChatApp
        from mnemos.tui.app.engine import loader_of, opener_of
        from mnemos.tui.app.running import run_app

        check_namespace(namespace)
        opener = opener_of(bank, namespace, create=True)
        run_app(ChatApp(opener, loader_of(namespace, max_tokens), namespace, session=session, model=model))
        return

    from mnemos.tui.opening import open_bank

    with open_bank(bank, namespace, create=True) as opened:
        conversation = Conversation(opened, namespace, model, max_tokens, json=json)
        if session:
            conversation.switch(opened.get_session(session, namespace=namespace).id)
        conversation.run()
    if conversation.exit_code:
        raise typer.Exit(conversation.exit_code)


def has_screen() -> bool:
    """Whether a person sits at a terminal that an app can draw on."""
    return (
        sys.stdin.isatty()
        and sys.stdout.isatty()
        and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
    )


class Conversation:
    """The state of one `mnemos chat`: a bank, a session, and a model that is loaded at the first message."""

    def __init__(
        self,
        bank: "MemoryBank",
        namespace: str,
        model: str | None,
        max_tokens: int | None = None,
        *,
        json: bool = False,
    ) -> None:
        self.bank = bank
        self.namespace = namespace
        self.json = json  # each reply as one JSON document on a line of its own
        self.session_id: str | None = None
        self.last_reply: Reply | None = None
        self.last_text = ""  # of the last message
        self.incognito = False  # nothing of the messages from now on is stored
        self.is_over = False
        self.exit_code = 0  # of the last turn that failed, where nobody was there to see it
        self._model = model
        self._max_tokens = max_tokens
        self._agent: Agent | None = None

    def run(self) -> None:
        """Turns until the end of input or `/quit`. An error ends its turn, not the conversation."""
        for line in read_lines():
            try:
                self.take(line)
            except KeyboardInterrupt:
                if not console.is_interactive():
                    raise
                console.say("interrupted; the reply is kept as far as it came")
            except MnemosError as error:
                console.say(f"error: {error}")
                if not console.is_interactive():
                    self.exit_code = error.exit_code
            if self.is_over:
                break

    def take(self, line: str | MnemosError) -> None:
        """One line: a message, or a command that starts with a slash (two slashes: a message with one)."""
        if isinstance(line, MnemosError):
            raise line
        if not line.strip():
            return
        if line.startswith("/") and not line.startswith("//"):
            from mnemos.tui.chat_commands import execute

            execute(self, line)
            return
        self.send(line.removeprefix("/") if line.startswith("//") else line)

    def send(self, text: str, *, exclude: Collection[str] = ()) -> None:
        """One turn with the agent, which does not recall `exclude`."""
        from mnemos.tui import forms, output
        from mnemos.tui.ask import stream_reply

        agent = self.agent()
        self.last_text = text
        self.last_reply = reply = stream_reply(
            agent, text, quietly=self.json, incognito=self.incognito, exclude=exclude
        )
        self.session_id = reply.session_id or self.session_id
        if self.incognito:
            console.say("[incognito: nothing of this is stored]")
        if self.json:
            output.document(forms.reply(reply))
        elif reply.memories and console.is_interactive():
            count = len(reply.memories)
            console.say(f"[{count} {'memory' if count == 1 else 'memories'}; /why shows them]")

    def agent(self) -> "Agent":
        """The agent of the current session; loads the model the first time."""
        if self._agent is None:
            console.say("loading the model ...")
            from mnemos.tui.opening import catch_up, load_model

            model = load_model(self._model)
            catch_up(self.bank, model, self.namespace)
            self._agent = self._new_agent(model, self.session_id)
        return self._agent

    def switch(self, session_id: str | None) -> None:
        """Go on with another session; None starts a new one at the next message."""
        if self._agent is not None:
            self._agent = self._new_agent(self._agent.model, session_id)
        self.session_id, self.last_reply, self.last_text = session_id, None, ""

    def enter_namespace(self, name: str) -> None:
        """Go on with other memories, in a new session. InvalidNamespaceError."""
        from mnemos.store.ids import check_namespace

        check_namespace(name)
        self.namespace = name
        self.switch(None)

    def change_model(self, name: str) -> None:
        """Load another model and go on with it. ModelError: the one there is stays."""
        from mnemos.tui.opening import load_model

        self._agent = self._new_agent(load_model(name), self.session_id)
        self._model = name

    def _new_agent(self, model: "LanguageModel", session_id: str | None) -> "Agent":
        from mnemos.tui.ask import make_agent

        return make_agent(self.bank, self.namespace, model, session_id, self._max_tokens)


def read_lines() -> "Iterator[str | MnemosError]":
    """Lines as they are typed or piped; for one that is not text, the error that says so."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        while data := sys.stdin.buffer.readline():
            try:
                yield console.decode(data.rstrip(b"\r\n"))
            except MnemosError as error:
                yield error
        return
    _keep_history()
    while True:
        try:
            yield input("> ")
        except EOFError:
            return
        except KeyboardInterrupt:
            print()
            console.say("(Ctrl+D or /quit leaves)")


def _keep_history() -> None:
    """Arrow keys bring back earlier lines of this conversation: from memory, never from a file."""
    try:
        import readline
    except ImportError:  # Windows, and Pythons built without it
        return
    readline.set_auto_history(True)
