"""The plain values that pass in and out of the store. No tensors, no database rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mnemos.store.selectors import Condition

Kind = Literal["exchange", "note", "document", "tool"]
Status = Literal["complete", "open", "interrupted", "damaged"]  # damaged: its words are lost
FrameKind = Literal["text", "kv", "route", "prefix"]
Cascade = Literal["closure", "none"]


@dataclass(frozen=True, slots=True)
class MemoryDraft:
    """A memory before it has an id.

    `text` holds the user's own words (or the document's); `reply` the model's words of the same exchange.
    `content_key` makes the write idempotent: a second draft of the namespace with the same key returns the
    first memory. Only an HMAC of it is kept.
    """

    text: str
    kind: Kind = "note"
    reply: str | None = None
    speaker: str | None = None
    title: str | None = None
    source: str | None = None
    session_id: str | None = None
    created_at: datetime | None = None  # UTC; now when absent
    expires_at: datetime | None = None
    tags: Sequence[str] = ()
    status: Status = "complete"
    content_key: bytes | None = None
    uses: "Sequence[UseRecord]" = ()  # what it was made from; forgetting one of those takes it, too


@dataclass(frozen=True, slots=True)
class MemoryRecord:
    """A live memory as the bank holds it."""

    id: str  # 26 characters, random, lower-case base32
    namespace: str
    kind: Kind
    text: str
    reply: str | None
    speaker: str | None
    title: str | None
    source: str | None
    session_id: str | None
    created_at: datetime
    expires_at: datetime | None
    tags: tuple[str, ...]
    status: Status
    pinned: bool
    hidden: bool
    ordinal: int  # rises with each memory of the namespace: the order in which they were written
    text_bytes: int
    trace_bytes: int  # bytes of KV and routing frames on disk; 0 when the memory has no trace
    tokens: int  # tokens of the trace; 0 when it has none
    trace_fingerprint: str | None  # of the model that made the trace
    kv_bytes: int = 0  # of the KV frame; 0 when the memory is faint or has no trace


@dataclass(frozen=True, slots=True)
class TraceDraft:
    """What one model keeps of one memory, as bytes. Without `kv` the memory is faint."""

    memory_id: str
    fingerprint: str
    tokens: int
    kv: bytes
    route: bytes


@dataclass(frozen=True, slots=True)
class UseRecord:
    """One memory's part in one reply: how it was found and how much it was attended."""

    memory_id: str
    rank: int
    score: float
    signals: Mapping[str, float] = field(default_factory=dict)
    attention: float | None = None  # share of the reply's attention mass, 0 to 1
    cited: bool = False


@dataclass(frozen=True, slots=True)
class SessionRecord:
    id: str
    namespace: str
    title: str | None
    created_at: datetime
    updated_at: datetime
    turns: int  # exchanges, with those of what it branched from
    parent_id: str | None = None  # of a branch


@dataclass(frozen=True, slots=True)
class Selector:
    """Which memories of one namespace. Every field that is set must hold; at least one must be set."""

    namespace: str
    ids: Sequence[str] | None = None  # ids or unambiguous prefixes
    matching: str | None = None  # case-insensitive substring of text, reply, title or source
    session_id: str | None = None
    source: str | None = None
    tags: Sequence[str] | None = None  # all of them
    since: datetime | None = None
    until: datetime | None = None
    where: "Condition | None" = None
    everything: bool = False


@dataclass(frozen=True, slots=True)
class ErasePlan:
    """What an erase would do, before anything is touched."""

    token: str  # of the bank's state; an erase with a stale one is refused
    namespace: str
    selected: tuple[MemoryRecord, ...]
    dependants: tuple[MemoryRecord, ...]  # replies and memories made with a selected one in view, closed over
    cascade: Cascade
    bytes_on_disk: int
    takes_all: bool = False  # whether it selects every memory of the namespace


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding of a verify."""

    kind: str  # missing-frame, corrupt-frame, orphan-frame, undecryptable, present-though-erased ...
    subject: str  # an id or a file name, never words
    detail: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    ok: bool  # no problems; memories in quarantine are none
    checked: Mapping[str, int]
    problems: tuple[Problem, ...]
    quarantined: tuple[Problem, ...] = ()  # memories whose words are lost; known, and shown as damaged


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What a repair did, and how the bank is afterwards."""

    repaired: tuple[Problem, ...]  # mended; the detail says how
    quarantined: tuple[Problem, ...]  # put in quarantine by this repair
    after: VerifyReport


@dataclass(frozen=True, slots=True)
class CompactReport:
    """What a compaction did. Bytes before and after are those that the segments take up on the disk."""

    bytes_before: int
    bytes_after: int
    segments_removed: int = 0
    frames_moved: int = 0
    bytes_moved: int = 0
    frames_left: int = 0  # damaged: they stay where they are
    is_finished: bool = True  # False when the budget ran out first


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Counts and bytes; of one namespace where named so."""

    memories: int
    hidden: int
    pending_traces: int
    tokens: int
    text_bytes: int
    trace_bytes: int
    disk_bytes: int
    namespaces: int
    vivid: int = 0
    faint: int = 0
    kv_bytes: int = 0  # of vivid ones
