"""What an archive holds, as plain values between its lines and the bank."""

from dataclasses import dataclass, field
from datetime import datetime

from mnemos.store.records import MemoryDraft, UseRecord


@dataclass(frozen=True, slots=True)
class ArchivedMemory:
    """A memory that is to be merged into a bank."""

    draft: MemoryDraft
    id: str | None = None  # None: it gets a new one, and its content key alone says whether it is known
    pinned: bool = False
    hidden: bool = False
    uses: tuple[UseRecord, ...] = ()
    content_tag: bytes | None = None  # counts only in the very namespace that it was exported from


@dataclass(frozen=True, slots=True)
class ArchivedSession:
    id: str
    title: str | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class ArchivedTrace:
    memory_id: str
    fingerprint: str
    tokens: int
    kv: bytes
    route: bytes


@dataclass(slots=True)
class Group:
    """Memories of one namespace that are merged as one durable group, with the sessions they name."""

    namespace: str
    namespace_id: str | None = None
    sessions: dict[str, ArchivedSession] = field(default_factory=dict)
    memories: list[ArchivedMemory] = field(default_factory=list)
    traces: dict[str, ArchivedTrace] = field(default_factory=dict)


@dataclass(slots=True)
class Merged:
    """What became of memories."""

    known: int = 0  # the namespace holds them already, by id or by content
    erased_before: int = 0  # erased here earlier, so they were left out
    expired: int = 0
    replies_withheld: int = 0  # replies made with something that was erased here
    sessions: int = 0  # new ones
    added: dict[str, str] = field(default_factory=dict)  # id here -> id in the archive ("" for none)


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote."""

    namespaces: int
    sessions: int
    memories: int
    traces: int
    traces_left_out: int  # damaged ones: they are made again from the text
