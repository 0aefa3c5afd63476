"""Other ways for a conversation to go: a reply made again, a message edited, a branch from any message.

What was there stays in the session where it was said; the new words go into a branch that shares what came
before. The turn itself does not recall what it stands in for.
"""

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from mnemos.errors import MnemosError, UsageError
from mnemos.tui.app import history
from mnemos.tui.app.conversation import Answer, Card, Entry, Said

if TYPE_CHECKING:
    from mnemos.tui.app.app import ChatApp


async def act(app: "ChatApp", asked: Entry.Asked) -> None:
    """What the person asked for at an entry. Raises `MnemosError`."""
    said = app.conversation.said_of(asked.entry)
    match asked.action:
        case "edit" if said is not None:
            app.prompt.edit(said)
        case "regenerate":
            await regenerate(app, said)
        case "branch":
            await branch(app, asked.entry.exchange_id)
        case "way":
            await other_way(app, asked.entry, asked.session_id)


async def regenerate(app: "ChatApp", said: Said | None = None) -> None:
    """Make the reply to a message again, by default to the latest one."""
    told = [each for each in app.conversation.entries if isinstance(each, Said)]
    said = said or (told[-1] if told else None)
    if said is None or said in app.turns.waiting:
        raise UsageError("there is no reply to make again yet")
    await resend(app, said, said.words)


async def resend(app: "ChatApp", said: Said, text: str) -> None:
    """Send a text in place of a message: in a branch from before it, so that both ways stay."""
    await app.turns.stopped()
    if said.exchange_id is None or app.session_id is None:  # nothing of it is stored, so nothing is branched
        await app.turns.send(text)
        return
    replaced = said.exchange_id
    made = await asyncio.to_thread(
        app.bank.branch_session, app.session_id, before=replaced, namespace=app.namespace
    )
    await app.switch(made.id)
    await app.turns.send(text, exclude=frozenset({replaced}))
    app.notify("the earlier reply is kept: ← and → on the reply, or Ctrl+B, go back to it", timeout=6)


async def branch(app: "ChatApp", exchange_id: str | None) -> None:
    """Go on from an exchange, or from the latest, in a session of its own."""
    await app.turns.stopped()
    if app.session_id is None:
        raise UsageError("there is nothing to branch from yet")
    made = await asyncio.to_thread(
        app.bank.branch_session, app.session_id, at=exchange_id, namespace=app.namespace
    )
    await app.switch(made.id)
    await app.conversation.put(Card("a branch: what you say now goes its own way; Ctrl+B shows both"))


async def other_way(app: "ChatApp", entry: Entry, session_id: str) -> None:
    """The session that has another exchange in the entry's place."""
    answers = app.conversation.answers
    at = answers.index(entry) if isinstance(entry, Answer) else -1
    await app.switch(session_id)
    answers = app.conversation.answers
    if 0 <= at < len(answers):
        answers[at].focus()


async def show_ways(app: "ChatApp") -> None:
    """Mark the replies that others stand beside."""
    if app.session_id is None or not app.is_open:
        return
    session_id = app.session_id
    with suppress(MnemosError):  # the session may be gone by now
        found = await asyncio.to_thread(history.ways, app.bank, app.namespace, session_id)
        if app.session_id == session_id:
            for answer in app.conversation.answers:
                if answer.exchange_id in found:
                    answer.set_ways(*found[answer.exchange_id])
