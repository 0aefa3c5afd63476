"""What a turn tells as it goes, as typed events in this order: RecallStarted, Recalled, TokenDelta ...,
Reply, Stored.
"""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mnemos.memory.records import Kind, RecalledMemory

Mode = Literal["kv", "text"]  # how memories reach what writes the reply: as the model's KV, or read as text


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RecallStarted(_Event):
    """The message is durable, and the memories are being searched for it."""

    type: Literal["recall_started"] = "recall_started"
    exchange_id: str | None = Field(description="None where the turn is not kept")
    store_ms: float = Field(default=0.0, description="what it took to make the message durable")


class Recalled(_Event):
    """The memories that were routed and paged in. Times in milliseconds, sizes in tokens and bytes of
    decoded KV.
    """

    type: Literal["recalled"] = "recalled"
    memories: tuple[RecalledMemory, ...]
    route_ms: float
    page_ms: float
    paged_tokens: int
    paged_bytes: int
    mode: Mode = "kv"


class TokenDelta(_Event):
    """Some more text of the reply."""

    type: Literal["token"] = "token"
    text: str


class Usage(_Event):
    """What a turn cost."""

    type: Literal["usage"] = "usage"
    prefill_tokens: int
    paged_tokens: int
    decoded_tokens: int
    route_ms: float
    page_ms: float
    prefill_ms: float
    first_token_ms: float
    decode_ms: float
    store_ms: float = 0.0


class StoredMemory(_Event):
    """A memory that the turn wrote. `changed_by` names the write policies that changed or dropped words."""

    type: Literal["stored_memory"] = "stored_memory"
    memory_id: str
    kind: Kind
    tags: tuple[str, ...] = ()
    expires_at: datetime | None = None
    changed_by: tuple[str, ...] = ()


class Reply(_Event):
    """The whole reply. It is durable when this event arrives, unless the turn is not kept.

    `text` is what the model said; `stored` says what the turn wrote, which policies may have changed.
    `generator` names what wrote the reply where that is not the agent's own model.
    """

    type: Literal["reply"] = "reply"
    text: str
    memories: tuple[RecalledMemory, ...]
    exchange_id: str | None = Field(description="None where the turn is not kept")
    session_id: str | None
    status: Literal["complete", "interrupted", "timeout"]
    stop_reason: str
    usage: Usage
    stored: tuple[StoredMemory, ...] = ()
    mode: Mode = "kv"
    generator: str | None = None


class Stored(_Event):
    """The exchange became a memory with a trace of its own and can be recalled from now on."""

    type: Literal["stored"] = "stored"
    memory_id: str
    kind: Kind = "exchange"
    encode_ms: float = 0.0


Event = RecallStarted | Recalled | TokenDelta | Reply | Stored
