"""What a bank ought to hold after a list of operations, kept apart from it: the truth that `bench_soak`
compares a bank with after each kill.
"""

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

from mnemos.store.store import Store

Operation = dict[str, Any]  # plain values only: it goes through a pipe
Result = dict[str, Any]
PENDING = ""  # the id of something whose write was not acknowledged


@dataclass
class Held:
    """One memory. Memories are told apart by their text, which occurs once; `uses` holds texts."""

    text: str
    kind: str
    id: str
    reply: str | None = None
    status: str = "complete"
    tags: tuple[str, ...] = ()
    session_id: str | None = None
    content_key: str | None = None
    is_expired: bool = False
    pinned: bool = False
    hidden: bool = False
    uses: tuple[str, ...] = ()
    trace: str | None = None  # SHA-256 of the KV


_COMPARED = (
    "kind",
    "reply",
    "status",
    "tags",
    "session_id",
    "is_expired",
    "pinned",
    "hidden",
    "uses",
    "trace",
)


@dataclass
class Space:
    """One namespace: memories by text in the order of writing, titles of sessions by id."""

    held: dict[str, Held] = field(default_factory=dict)
    sessions: dict[str, str] = field(default_factory=dict)

    def copy(self) -> "Space":
        return Space({text: replace(held) for text, held in self.held.items()}, dict(self.sessions))

    def by_id(self) -> dict[str, Held]:
        return {held.id: held for held in self.held.values()}

    def texts(self, ids: list[str]) -> list[str]:
        wanted = set(ids)
        return [held.text for held in self.held.values() if held.id in wanted]

    # -- what each operation does; `result` is None where it was not acknowledged

    def apply(self, operation: Operation, result: Result | None) -> list[Held]:
        """Carries an operation out; what it erased (rewritten replies as they were)."""
        kind = operation["do"]
        if kind == "add":
            self._add(operation["drafts"], None if result is None else result["ids"])
        elif kind == "complete":
            held = self.by_id()[operation["id"]]
            held.reply, held.status, held.trace = operation["reply"], "complete", None
            held.uses = tuple(self.by_id()[used].text for used in operation["uses"])
        elif kind == "trace":
            for memory_id, kv in operation["traces"]:
                self.by_id()[memory_id].trace = digest(bytes.fromhex(kv))
        elif kind == "flag":
            held = self.by_id()[operation["id"]]
            held.pinned, held.hidden = operation["pinned"], operation["hidden"]
        elif kind == "session":
            self.sessions[PENDING if result is None else result["id"]] = operation["title"]
        elif kind == "rename":
            self.sessions[operation["id"]] = operation["title"]
        elif kind in ("erase", "sweep"):
            doomed = self.expired() if kind == "sweep" else operation["ids"]
            return self._erase(doomed, operation["cascade"], {} if result is None else result["rewritten"])
        elif kind == "wipe":
            gone = list(self.held.values())
            self.held, self.sessions = {}, {}
            return gone
        return []

    def expired(self) -> list[str]:
        return [held.id for held in self.held.values() if held.is_expired]

    def _add(self, drafts: list[dict[str, Any]], ids: list[str] | None) -> None:
        keys = {held.content_key for held in self.held.values() if held.content_key is not None}
        for index, draft in enumerate(drafts):
            key = draft["content_key"]
            if key is not None and key in keys:
                continue
            self.held[draft["text"]] = Held(
                draft["text"],
                draft["kind"],
                PENDING if ids is None else ids[index],
                status=draft["status"],
                tags=tuple(draft["tags"]),
                session_id=draft["session_id"],
                content_key=key,
                is_expired=draft["is_expired"],
            )

    def _erase(self, ids: list[str], cascade: str, rewritten: dict[str, str]) -> list[Held]:
        doomed = set(self.texts(ids))
        replies = self._dependants(doomed) if cascade == "closure" else set()
        gone = [replace(self.held[text]) for text in (*doomed, *replies)]
        self._end_sessions(doomed)
        for text in doomed:
            del self.held[text]
        for held in self.held.values():
            if held.text in replies:
                held.id = rewritten.get(held.id, PENDING)
                held.reply, held.trace, held.uses = None, None, ()
            held.uses = tuple(used for used in held.uses if used not in doomed | replies)
        return gone

    def _dependants(self, doomed: set[str]) -> set[str]:
        found: set[str] = set()
        while True:
            more = {
                held.text
                for held in self.held.values()
                if held.reply is not None and not (doomed | found).isdisjoint(held.uses)
            }
            if more - doomed <= found:
                return found
            found |= more - doomed

    def _end_sessions(self, doomed: set[str]) -> None:
        touched = {self.held[text].session_id for text in doomed}
        left = {held.session_id for held in self.held.values() if held.text not in doomed}
        for session_id in touched - left:
            if session_id is not None:
                self.sessions.pop(session_id, None)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def observe(store: Store, name: str) -> Space:
    """A namespace as the bank has it; empty when there is none."""
    records = store.list(name, include_hidden=True, newest_first=False)
    texts = {record.id: record.text for record in records}
    traced = store.get_kvs(name, [record.id for record in records])
    space = Space(sessions={session.id: session.title or "" for session in store.sessions(name)})
    for record in records:
        uses = store.uses_of(name, record.id) if record.kind == "exchange" else []
        space.held[record.text] = Held(
            record.text,
            record.kind,
            record.id,
            reply=record.reply,
            status=record.status,
            tags=record.tags,
            session_id=record.session_id,
            is_expired=record.expires_at is not None,
            pinned=record.pinned,
            hidden=record.hidden,
            uses=tuple(texts.get(use.memory_id, "?") for use in uses),
            trace=digest(traced[record.id]) if record.id in traced else None,
        )
    return space


def differences(expected: Space, seen: Space) -> list[str]:
    """What is not as it should be; nothing when all is. Ids that were never acknowledged match any."""
    found: list[str] = []
    for text, held in expected.held.items():
        other = seen.held.get(text)
        if other is None:
            found.append(f"memory {held.id or 'of an unacknowledged write'} is not there")
            continue
        if held.id not in (PENDING, other.id):
            found.append(f"memory {held.id} has the id {other.id}")
        found += [
            f"memory {other.id}: {name} is not what was written"
            for name in _COMPARED
            if getattr(held, name) != getattr(other, name)
        ]
    found += [
        f"memory {other.id} is there and ought not to be"
        for text, other in seen.held.items()
        if text not in expected.held
    ]
    if not found and list(expected.held) != list(seen.held):
        found.append("the order of the memories has changed")
    titles = dict(expected.sessions)
    unknown = titles.pop(PENDING, None)
    others = dict(seen.sessions)
    if unknown is not None:
        born = [one for one, title in others.items() if one not in titles and title == unknown]
        if len(born) != 1:
            found.append("a session is not there")
        for one in born:
            del others[one]
    if titles != others:
        found.append("the sessions are not what was written")
    return found


def adopt(expected: Space, seen: Space) -> None:
    """Takes over the ids of what was written without being acknowledged."""
    for text, held in expected.held.items():
        held.id = seen.held[text].id
    expected.sessions = dict(seen.sessions)
