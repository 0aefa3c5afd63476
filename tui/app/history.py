"""What the app reads of a bank's past: sessions, their turns, and what replies were made with."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from mnemos.errors import NotFoundError
from mnemos.tui.app.conversation import Answer, count_of
from mnemos.tui.app.sidebar import SessionLine

if TYPE_CHECKING:
    from mnemos.memory.bank import MemoryBank
    from mnemos.memory.records import Memory, RecalledMemory
    from mnemos.store.records import SessionRecord

TURNS = 100  # of a session that are shown; the inspector has the rest
SESSIONS = 200
_TITLE_CHARS = 60
_ALL_SHARES = 0.99  # of the attention on memories, for rounding
_FAMILY = 40  # branches that are looked at for other replies in the same place


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
        found.append((each, title))
    return _as_tree(found)


def _as_tree(sessions: "Sequence[tuple[SessionRecord, str]]") -> list[SessionLine]:
    """Branches under what they branched from; the trees with the latest change first."""
    shown = {record.id for record, _ in sessions}
    below: dict[str | None, list[tuple[SessionRecord, str]]] = {}
    for record, title in sessions:
        parent = record.parent_id if record.parent_id in shown else None
        below.setdefault(parent, []).append((record, title))

    def tree(record: "SessionRecord", title: str, depth: int) -> list[SessionLine]:
        lines = [SessionLine(record.id, title, record.turns, record.updated_at, depth)]
        for child, name in below.get(record.id, ()):
            lines += tree(child, name, depth + 1)
        return lines

    trees = [tree(record, title, 0) for record, title in below.get(None, ())]
    trees.sort(key=lambda lines: max(line.updated_at for line in lines), reverse=True)
    return [line for lines in trees for line in lines]


def ways(bank: "MemoryBank", namespace: str, session_id: str) -> dict[str, tuple[tuple[str, ...], int]]:
    """Of each exchange of a session that others stand beside, in branches: the sessions to go on with for
    each of them, in the order they were said, and the place of the session's own.
    """
    sessions = {each.id: each for each in bank.sessions(namespace)}
    family = _family(sessions, session_id)
    if len(family) < 2:
        return {}
    told = {each: bank.history(each, namespace=namespace, include_hidden=True) for each in family}
    after: dict[str, dict[str, str]] = {}  # exchange before -> exchange -> a session that has both
    moments = {memory.id: memory.created_at for memories in told.values() for memory in memories}
    for each in sorted(family, key=lambda each: (each == session_id, sessions[each].updated_at)):
        before = ""
        for memory in told[each]:
            after.setdefault(before, {})[memory.id] = each
            before = memory.id
    found: dict[str, tuple[tuple[str, ...], int]] = {}
    before = ""
    for memory in told[session_id]:
        beside = sorted(after[before].items(), key=lambda item: moments[item[0]])
        if len(beside) > 1:
            at = [exchange_id for exchange_id, _ in beside].index(memory.id)
            found[memory.id] = (tuple(session for _, session in beside), at)
        before = memory.id
    return found


def _family(sessions: "Mapping[str, SessionRecord]", session_id: str) -> list[str]:
    """A session, what it branched from and what branched from them, as far as they are many."""
    beside: dict[str, list[str]] = {}
    for each in sessions.values():
        if each.parent_id is not None and each.parent_id in sessions:
            beside.setdefault(each.id, []).append(each.parent_id)
            beside.setdefault(each.parent_id, []).append(each.id)
    found, waiting = [session_id], [session_id]
    while waiting and len(found) < _FAMILY:
        fresh = [each for each in beside.get(waiting.pop(0), ()) if each not in found]
        found += fresh
        waiting += fresh
    return [each for each in found if each in sessions]


def why(
    bank: "MemoryBank", namespace: str, of: "str | Sequence[RecalledMemory]"
) -> "tuple[Sequence[RecalledMemory], Mapping[str, str]]":
    """The memories of a reply, and the titles of their sessions. `of` is the exchange, or what was recalled
    where no exchange is stored: as far as it is still there.
    """
    found = bank.why(of, namespace=namespace) if isinstance(of, str) else _left(bank, namespace, of)
    wanted = {each.memory.session_id for each in found}
    return found, {line.id: line.title for line in lines(bank, namespace) if line.id in wanted}


def _left(bank: "MemoryBank", namespace: str, recalled: "Sequence[RecalledMemory]") -> "list[RecalledMemory]":
    found = []
    for each in recalled:
        with suppress(NotFoundError):
            memory = bank.get(each.memory.id, namespace=namespace)
            found.append(each.model_copy(update={"memory": memory}))
    return found


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


def missing(found: "Sequence[RecalledMemory]") -> int:
    """How many memories of a reply are gone, as far as those that are left tell: their ranks have gaps, or
    their shares of the attention fall short of all of it.
    """
    if not found:
        return 0
    gaps = max(each.rank for each in found) - len(found)
    shares = [each.attention for each in found if each.attention is not None]
    return max(gaps, int(bool(shares) and sum(shares) < _ALL_SHARES))


def mark(answer: Answer, found: "Sequence[RecalledMemory] | None") -> None:
    """Show what a reply on the screen was made with, and what of that is gone."""
    if found is None:
        answer.forget_words("forgotten since")
    elif answer.words:
        gone = missing(found) if answer.count is None else answer.count - len(found)
        answer.show_memories(found)
        if gone > 0:
            answer.set_mark(f"{count_of(gone)} forgotten since")
