"""What is kept, and where: incognito turns, deleted sessions, namespaces."""

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from mnemos.errors import MnemosError, NotFoundError, UsageError
from mnemos.tui import transcripts
from mnemos.tui.app.choices import NamespaceDialog, Question, deleting
from mnemos.tui.app.conversation import Card, Said

if TYPE_CHECKING:
    from mnemos.tui.app.app import ChatApp
    from mnemos.tui.app.sidebar import SessionLine


async def toggle_incognito(app: "ChatApp") -> None:
    """From the next message on, nothing is stored; or all is again."""
    if app.bank.read_only:
        raise UsageError("the bank is open read-only, so nothing of this conversation can be stored")
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
        plan = await asyncio.to_thread(app.bank.plan_forget, namespace=app.namespace, session_id=session.id)
        answer = await app.push_screen_wait(deleting(session.title, len(plan.selected), session.turns))
        if answer is None:
            return
        if session.id == app.session_id:
            await app.turns.stopped()
        if answer == "whole" and await app.forget(session_id=session.id) is None:
            app.notify("the session is kept", markup=False)
            return
        with suppress(NotFoundError):  # it went with its last memory
            await asyncio.to_thread(
                app.bank.delete_session,
                session.id,
                with_memories=answer == "whole",
                namespace=app.namespace,
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
        name = await app.push_screen_wait(NamespaceDialog(await asyncio.to_thread(counted), app.namespace))
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


async def export(app: "ChatApp", named: str) -> None:
    """Write the session to a file; asks before one goes that is there. Call it in a worker."""
    if app.session_id is None:
        raise UsageError("there is no session to export yet; say something first")
    path = transcripts.path_of(named, app.session_id)
    if path.exists():
        question = Question("Overwrite the file?", str(path), ("no", "No, keep"), ("yes", "Overwrite"))
        if await app.push_screen_wait(question) != "yes":
            app.notify("nothing was written", markup=False)
            return
    try:
        turns = await asyncio.to_thread(
            transcripts.write, app.bank, app.namespace, app.session_id, path, replace=path.exists()
        )
    except OSError as error:
        raise UsageError(f"{path} can't be written ({error.strerror or error}); name another file") from error
    count = f"{turns} turn{'' if turns == 1 else 's'}"
    await app.conversation.put(Card(f"{count} written to {path}, readable by you alone and not encrypted"))


async def ingest(app: "ChatApp", named: str) -> None:
    """Remember a file or a folder, in pieces."""
    from mnemos.memory import ingest as ingesting

    if not named:
        raise UsageError("say what: /ingest FILE, or a folder")

    def progress(done: int, total: int) -> None:
        app.call_from_thread(app.status.working, f"ingesting {done / max(total, 1):.0%}")

    try:
        report = await asyncio.to_thread(
            ingesting.ingest, app.bank, named, namespace=app.namespace, on_progress=progress
        )
    except OSError as error:
        raise NotFoundError(f"{named} can't be read ({error.strerror})") from error
    finally:
        if not app.turns.is_running:
            app.status.idle()
    files = f"{report.files} file{'' if report.files == 1 else 's'}"
    added = "1 memory" if report.added == 1 else f"{report.added:,} memories"
    words = f"{added} added, {report.skipped:,} known already, from {files}"
    for problem in report.problems[:3]:
        words += f"\nleft out: {problem.reason}"
    await app.conversation.put(Card(words))
