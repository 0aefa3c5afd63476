"""What the app reads of a bank's past: sessions, their turns, and what replies were made with."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mnemos.errors import NotFoundError
from mnemos.tui.app.conversation import Answer, count_of
from mnemos.tui.app.sidebar import SessionLine

if TYPE_CHECKING:
    from mnemos.memory.bank import MemoryBank
    from mnemos.memory.records import Memory, RecalledMemory

TURNS = 100  # of a session that are shown; the inspector has the rest
SESSIONS = 200
_TITLE_CHARS = 60


def exchanges(bank: "MemoryBank", namespace: str, session_id: str) -> "list[Memory]":
    """The latest turns of a session, oldest first."""
    return bank.history(session_id, namespace=namespace, include_hidden=True, limit=TURNS)


def lines(bank: "MemoryBank", namespace: str) -> list[SessionLine]:
    """Sessions that have turns, latest first; the first words of one without a title stand for it."""
    sessions = sorted(bank.sessions(namespace), key=lambda each: each.updated_at, reverse=True)
    found = []
    for each in [session for session in sessions if session.turns][:SESSIONS]:
        title = each.title
        if not title:
            first = bank.list(namespace, session_id=each.id, newest_first=False, include_hidden=True, limit=1)
            first = first or bank.history(each.id, namespace=namespace, include_hidden=True, limit=1)
            title = " ".join(first[0].text.split())[:_TITLE_CHARS] if first else "(empty)"
        found.append(SessionLine(each.id, title, each.turns, each.updated_at))
    return found


def why(
    bank: "MemoryBank", namespace: str, exchange_id: str
) -> "tuple[Sequence[RecalledMemory], Mapping[str, str]]":
    """The memories of a reply, and the titles of their sessions."""
    found = bank.why(exchange_id, namespace=namespace)
    wanted = {each.memory.session_id for each in found}
    return found, {line.id: line.title for line in lines(bank, namespace) if line.id in wanted}


def provenance(
    bank: "MemoryBank", namespace: str, ids: Sequence[str]
) -> "dict[str, Sequence[RecalledMemory] | None]":
    """The memories of several replies; None for one that is gone itself."""
    found: dict[str, Sequence[RecalledMemory] | None] = {}
    for exchange_id in ids:
        try:
            found[exchange_id] = bank.why(exchange_id, namespace=namespace)
        except NotFoundError:
            found[exchange_id] = None
    return found


async def mark(answer: Answer, found: "Sequence[RecalledMemory] | None") -> None:
    """Show what a reply on the screen was made with, and what of that is gone."""
    if found is None:
        await answer.forget_words("forgotten since")
    elif answer.words:
        gone = (answer.count or 0) - len(found)
        answer.show_memories(found)
        if gone > 0:
            answer.set_mark(f"{count_of(gone)} forgotten since")
