"""A conversation of another program, and what it becomes here: one memory for each exchange."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from mnemos.errors import InvalidTextError
from mnemos.memory.bank import MAX_TEXT_BYTES
from mnemos.store.archive_records import ArchivedMemory, ArchivedSession
from mnemos.store.ids import id_from_bytes
from mnemos.store.records import MemoryDraft

Format = Literal["chatgpt", "claude", "jsonl"]
_CUT = " […]"
MAX_TITLE_CHARS = 500


@dataclass(frozen=True, slots=True)
class Message:
    role: Literal["user", "assistant"]
    text: str
    at: datetime | None


@dataclass(frozen=True, slots=True)
class Conversation:
    """The messages of the branch that is shown, in order."""

    id: str  # of the other program, or a digest where it has none
    title: str | None
    created_at: datetime | None
    updated_at: datetime | None
    messages: Sequence[Message]
    skipped: int  # messages of system and tools, and those without words
    before: int = 0  # exchanges of the same conversation that were handed out already


def to_memories(
    found: Conversation, program: Format, source: str | None
) -> tuple[ArchivedSession, list[ArchivedMemory]]:
    """Its session, and a memory for each exchange: what the user said, and all that was answered."""
    fallback = found.created_at or found.updated_at or datetime.now(UTC)
    first = next((message.at for message in found.messages if message.at), None)
    created = found.created_at or first or fallback
    session = ArchivedSession(
        id=id_from_bytes(hashlib.sha256(f"mnemos/import/{program}/{found.id}".encode()).digest()[:16]),
        title=(found.title or "").strip()[:MAX_TITLE_CHARS] or None,
        created_at=created,
        updated_at=max(created, found.updated_at or created),
    )
    memories: list[ArchivedMemory] = []
    at = created
    is_dated = bool(found.created_at or first)
    for index, (asked, answered) in enumerate(exchanges(found.messages), found.before):
        at = next((message.at for message in (*asked, *answered) if message.at), at)
        words = [message.text for message in (asked or answered)]
        draft = MemoryDraft(
            text=_fit("\n\n".join(words)),
            kind="exchange",
            reply=_fit("\n\n".join(message.text for message in answered)) if asked and answered else None,
            speaker="User" if asked else "Assistant",
            source=source,
            session_id=session.id,
            created_at=at,
        )
        key = exchange_key(draft) if is_dated else exchange_key(replace(draft, created_at=None), index)
        memories.append(ArchivedMemory(replace(draft, content_key=key)))
    return session, memories


def exchange_key(draft: MemoryDraft, index: int = 0) -> bytes:
    """What makes two imported exchanges the same: session, time (or place) and words."""
    digest = hashlib.sha256(b"mnemos/exchange")
    at = f"#{index}" if draft.created_at is None else draft.created_at.astimezone(UTC).isoformat()
    for part in (draft.session_id or "", at, draft.speaker or "", draft.text, draft.reply or ""):
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.digest()


def exchanges(messages: Sequence[Message]) -> list[tuple[list[Message], list[Message]]]:
    """Runs of the user's messages, each with the run of replies behind it."""
    found: list[tuple[list[Message], list[Message]]] = []
    for message in messages:
        is_user = message.role == "user"
        if not found or (is_user and found[-1][1]):
            found.append(([], []))
        found[-1][0 if is_user else 1].append(message)
    return found


def _fit(text: str) -> str:
    """The text, cut where it is more than a memory takes."""
    encoded = text.encode("utf-8", "surrogatepass")
    if len(encoded) <= MAX_TEXT_BYTES:
        return text
    room = MAX_TEXT_BYTES - len(_CUT.encode())
    return encoded[:room].decode("utf-8", "ignore") + _CUT


def words_of(value: Any) -> str:
    """A text without surrounding space; InvalidTextError when it is no text at all."""
    if not isinstance(value, str):
        raise InvalidTextError("a message's words are not a text")
    # A lone surrogate is no character; programs that cut texts by UTF-16 leave them behind.
    return value.encode("utf-8", "replace").decode("utf-8").strip()


def moment(value: Any) -> datetime | None:
    """A Unix time in seconds, or an ISO 8601 time (without a zone: UTC); None when it is neither."""
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            at = datetime.fromtimestamp(value, UTC)
        elif isinstance(value, str):
            at = datetime.fromisoformat(value)
            at = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
        else:
            return None
    except (ValueError, OverflowError, OSError):
        return None
    return at
