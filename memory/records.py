"""Typed results of the memory bank: what people and programs get back, as pydantic models."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["exchange", "note", "document", "tool"]
Status = Literal["complete", "open", "interrupted", "damaged"]
Fidelity = Literal["vivid", "faint", "pending"]
Tier = Literal["gpu", "host", "disk"]  # where the keys and values of a memory are read from next
RouterName = Literal["full", "lexical", "latent"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Memory(_Frozen):
    """One remembered thing. `text` is the source of truth; the trace can always be made again from it."""

    id: str
    namespace: str
    kind: Kind
    text: str
    reply: str | None = Field(default=None, description="the assistant's words of the same exchange")
    speaker: str | None = None
    title: str | None = None
    source: str | None = None
    session_id: str | None = None
    created_at: datetime
    expires_at: datetime | None = None
    tags: tuple[str, ...] = ()
    status: Status = "complete"
    pinned: bool = False
    hidden: bool = False
    fidelity: Fidelity = Field(
        default="pending", description="pending: written, not yet encoded by the model"
    )
    tokens: int = Field(default=0, description="tokens of the trace")
    text_bytes: int = 0
    trace_bytes: int = Field(default=0, description="bytes of KV and routing keys on disk")


class SpanTokens(_Frozen):
    """A part of a memory that is encoded alone."""

    tokens: int
    pieces: tuple[str, ...] = Field(description="its tokens as text; one that is no whole character is empty")


class TraceParts(_Frozen):
    """How a memory was cut and stored for one model."""

    id: str
    model: str
    fidelity: Fidelity
    spans: tuple[SpanTokens, ...]
    tokens: int
    kv_bytes: int = Field(description="of keys and values, before encryption; 0 while pending")
    routing_bytes: int
    text_bytes: int
    bytes_per_token: float


class RecalledMemory(_Frozen):
    """A memory the router found, with every score that led to it."""

    memory: Memory
    rank: int
    score: float
    signals: Mapping[str, float] = Field(
        default_factory=dict, description="signal name -> value before fusion"
    )
    attention: float | None = Field(default=None, description="share of the reply's attention mass, 0 to 1")
    cited: bool = False


class LikeHit(_Frozen):
    """A memory that a `like` of a selector took, and its score."""

    id: str
    score: float


class LikeMatch(_Frozen):
    """What one `like` of a selector found, best first."""

    text: str
    threshold: float = Field(description="the least score that counts")
    scored: int = Field(description="memories that were scored")
    unscored: int = Field(default=0, description="memories without a trace, which could not be scored")
    best: float | None = Field(default=None, description="the highest score, whether it counts or not")
    hits: tuple[LikeHit, ...] = ()


class ForgetPlan(_Frozen):
    """What `forget` would do, before anything is touched."""

    token: str
    namespace: str
    selected: tuple[Memory, ...]
    dependants: tuple[Memory, ...] = Field(
        default=(), description="exchanges whose reply was made while a selected memory was paged in"
    )
    cascade: Literal["closure", "none"] = "closure"
    bytes_on_disk: int = 0
    takes_all: bool = Field(default=False, description="whether every memory of the namespace is selected")
    likes: tuple[LikeMatch, ...] = Field(default=(), description="of each `like` in the selector")


class Edited(_Frozen):
    """What an edit left: the memory under its new id, and the receipt of its former words."""

    memory: Memory
    receipt: "Receipt"


class Receipt(_Frozen):
    """Proof of an erase: ids, counts, digests and checks, signed; never a word of what was erased."""

    id: str
    namespace: str
    forgotten: tuple[str, ...]
    rewritten: Mapping[str, str] = Field(default_factory=dict, description="old id -> new id of kept words")
    document: Mapping[str, Any] = Field(description="the signed document as it is verified offline")


class AuditLine(_Frozen):
    """One line of the audit log. Each line's digest covers the line before it."""

    seq: int
    at: datetime
    actor: str = Field(description="api or cli")
    user: str | None = Field(default=None, description="of the operating system")
    action: str
    subject: str = Field(description="an id, never words")
    count: int
    digest: str


class RecallCost(_Frozen):
    """What one recall took: how many blocks each tier gave, and the time."""

    memories: int
    device: int = Field(default=0, description="blocks that were in the device's memory")
    host: int = Field(description="blocks that were in host memory, or as pages for a device")
    disk: int = Field(description="blocks read from the bank's files")
    revived: int = Field(description="blocks of faint memories, made anew by the model")
    bytes: int = Field(description="as they are held in host memory")
    route_ms: float
    page_ms: float


class BankStats(_Frozen):
    """Counts and sizes in bytes, of the whole bank or of one namespace."""

    memories: int
    hidden: int
    pending: int
    tokens: int
    text_bytes: int
    trace_bytes: int
    disk_bytes: int
    namespaces: int
    vivid: int = Field(default=0, description="memories whose KV is on the disk")
    faint: int = Field(default=0, description="memories whose KV has faded")
    kv_bytes: int = Field(default=0, description="of the KV frames of vivid memories")
    device_bytes: int = Field(default=0, description="KV held in the memory of the model's device, as pages")
    device_budget_bytes: int = 0
    device_hits: int = 0
    device_misses: int = 0
    cache_bytes: int = Field(default=0, description="KV held in host memory, or pages for a device there")
    cache_hits: int = 0
    cache_misses: int = 0
    keys_bytes: int = Field(default=0, description="routing keys held in host memory")
    disk_reads: int = Field(default=0, description="KV blocks read from the bank's files by this process")
    disk_read_bytes: int = 0
    disk_read_ms: float = 0.0
    revived: int = Field(default=0, description="faint memories read again by the model")
    revived_bytes: int = 0
    revived_ms: float = 0.0
    last_recalls: tuple[RecallCost, ...] = Field(default=(), description="of this process, oldest first")
