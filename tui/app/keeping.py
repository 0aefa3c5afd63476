"""What is kept, and where: incognito turns, deleted sessions, namespaces."""

import asyncio
from typing import TYPE_CHECKING

from mnemos.errors import MnemosError
from mnemos.tui.app.choices import NamespaceDialog, deleting
from mnemos.tui.app.conversation import Card, Said

if TYPE_CHECKING:
    from mnemos.tui.app.app import ChatApp
    from mnemos.tui.app.sidebar import SessionLine

INCOGNITO = "incognito: nothing of this is stored"


async def toggle_incognito(app: "ChatApp") -> None:
    """From the next message on, nothing is stored; or all is again."""
    app.incognito = not app.incognito
    app.prompt.set_incognito(app.incognito)
    app.show_model()
    if app.incognito:
        text = (
            "Incognito. Memories are recalled, and nothing is stored: no message, no reply. Each message "
            "stands alone, without the one before it. /incognito ends it."
        )
    else:
        told = [said for said in app.conversation.query(Said) if said.incognito]
        gone = {said.words for said in told}
        app.prompt.history = [words for words in app.prompt.history if words not in gone]
        count = f"{len(told)} message{'' if len(told) == 1 else 's'}"
        kept = f"Nothing of {count} was stored. " if told else ""
        text = f"Incognito is over. {kept}What you say now is remembered again."
    await app.conversation.put(Card(text))


async def delete_session(app: "ChatApp", session: "SessionLine") -> None:
    """Ask what becomes of a session and its memories, and do that. Call it in a worker."""
    try:
        plan = await asyncio.to_thread(
            app.bank.plan_forget, namespace=app.namespace, session_id=session.id
        )
        answer = await app.push_screen_wait(deleting(session.title, len(plan.selected), session.turns))
        if answer is None:
            return
        if session.id == app.session_id:
            await app.turns.stopped()
        if answer == "memories" and await app.forget(session_id=session.id) is None:
            app.notify("the session is kept", markup=False)
            return
        await asyncio.to_thread(
            app.bank.delete_session, session.id, with_memories=answer == "memories", namespace=app.namespace
        )
    except MnemosError as error:
        app.tell_error(error)
        return
    if session.id == app.session_id:
        await app.switch(None)
    await app.action_sessions(show=True)
    app.notify(f"“{session.title}” is deleted", markup=False)


async def choose_namespace(app: "ChatApp") -> None:
    """Ask which namespace to go on in. Call it in a worker."""

    def counted() -> list[tuple[str, int]]:
        names = sorted({*app.bank.namespaces(), app.namespace})
        return [(name, app.bank.count(name, include_hidden=True)) for name in names]

    try:
        name = await app.push_screen_wait(
            NamespaceDialog(await asyncio.to_thread(counted), app.namespace)
        )
        if name is not None and name != app.namespace:
            await enter_namespace(app, name)
    except MnemosError as error:
        app.tell_error(error)


async def enter_namespace(app: "ChatApp", name: str) -> None:
    """Go on in another namespace, with a conversation that begins. InvalidNamespaceError."""
    from mnemos.store.ids import check_namespace

    check_namespace(name)
    await app.turns.stopped()
    await app.turns.take_back()
    app.namespace = name
    app.sidebar.display = False
    await app.switch(None)
    await app.conversation.put(Card(f"namespace {name}: its memories are its own"))
