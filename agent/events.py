"""What a turn tells as it goes, as typed events in this order: RecallStarted, Recalled, TokenDelta ...,
Reply, Stored. Where tools are called, each ToolCall is followed by its ToolResult, between the words of the
reply.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

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


class ToolCall(_Event):
    """The model calls a tool; it runs now. `step` counts the reply's steps of decoding from 1."""

    type: Literal["tool_call"] = "tool_call"
    call_id: str
    name: str
    arguments: Mapping[str, Any]
    step: int


class ToolResult(_Event):
    """What the model was told that came of a call. `memory_id` is the memory that the result became."""

    type: Literal["tool_result"] = "tool_result"
    call_id: str
    name: str
    text: str
    is_error: bool
    ms: float
    memory_id: str | None = None


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
    """The whole reply. It is durable when this event arrives, unless the turn is not kept or forgot what the
    reply was made from. `output` is its value where the agent has an output type.

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
    output: Any = None


class Stored(_Event):
    """The exchange became a memory with a trace of its own and can be recalled from now on."""

    type: Literal["stored"] = "stored"
    memory_id: str
    kind: Kind = "exchange"
    encode_ms: float = 0.0


Event = RecallStarted | Recalled | TokenDelta | ToolCall | ToolResult | Reply | Stored
