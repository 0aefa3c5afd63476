"""What the slash commands of the app do."""

import asyncio
from typing import TYPE_CHECKING

from mnemos.errors import UsageError
from mnemos.tui.app import branching, keeping
from mnemos.tui.app.appearance import SHORT_NAMES
from mnemos.tui.app.conversation import Card
from mnemos.tui.app.slash import HELP, read

if TYPE_CHECKING:
    from mnemos.tui.app.app import ChatApp


async def execute(app: "ChatApp", line: str) -> None:
    """Runs one slash command. Raises `MnemosError`, a `UsageError` for one that doesn't exist."""
    found = read(line)
    assert found is not None, "the caller has seen the slash"
    name, rest = found
    match name:
        case "help":
            app.action_help()
        case "memories":
            app.inspect(rest)
        case "why":
            await app.action_why()
        case "regenerate":
            await branching.regenerate(app)
        case "branch":
            await branching.branch(app, rest or None)
        case "incognito":
            await keeping.toggle_incognito(app)
        case "namespace":
            if rest:
                await keeping.enter_namespace(app, rest)
            else:
                app.action_namespace()
        case "remember":
            memory = await asyncio.to_thread(app.bank.remember, rest, namespace=app.namespace)
            await app.conversation.put(Card(f"remembered as {memory.id[:8]}"))
        case "forget":
            if not rest:
                raise UsageError("say what to forget: /forget TEXT")
            await app.forget(matching=rest)
        case "pin":
            await _pin(app, rest)
        case "session":
            await _session(app, rest)
        case "export":
            await keeping.export(app, rest)
        case "ingest":
            await keeping.ingest(app, rest)
        case "model":
            app.change_model(rest or None)
        case "theme":
            _theme(app, rest)
        case "quit":
            await app.leave()
        case _:
            raise UsageError(f"there is no /{name}; /help lists the {len(HELP)} commands")


async def _pin(app: "ChatApp", rest: str) -> None:
    if not rest:
        raise UsageError("say which: /pin ID (F2 and F3 show the ids)")
    memory = await app.change("pin", rest)
    if memory is not None:
        await app.conversation.put(Card(f"pinned {memory.id[:8]}"))


async def _session(app: "ChatApp", rest: str) -> None:
    action, _, argument = rest.partition(" ")
    match action:
        case "":
            shown = app.session_id[:8] if app.session_id else "(not begun)"
            await app.conversation.put(Card(f"session {shown}"))
        case "new":
            await app.switch(None)
        case "list":
            await app.action_sessions(show=True)
        case "title":
            if not app.session_id or not argument.strip():
                raise UsageError("say something first, then /session title TEXT names the session")
            await app.rename(app.session_id, argument.strip())
        case _:
            found = await asyncio.to_thread(app.bank.get_session, action, namespace=app.namespace)
            await app.switch(found.id)


def _theme(app: "ChatApp", rest: str) -> None:
    if not rest:
        app.action_change_theme()
        return
    name = SHORT_NAMES.get(rest, rest)
    if name not in app.available_themes:
        raise UsageError(f"there is no theme {rest}; /theme shows them")
    app.theme = name
