"""What a turn tells as it goes, as typed events in this order: Recalled, TokenDelta ..., Reply, Stored.

Where tools are called, each ToolCall is followed by its ToolResult, between the words of the reply.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from mnemos.memory.records import RecalledMemory


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


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


class TokenDelta(_Event):
    """Some more text of the reply."""

    type: Literal["token"] = "token"
    text: str


class ToolCall(_Event):
    """The model calls a tool; it runs now. `step` counts the reply's generation steps from 1."""

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


class Reply(_Event):
    """The whole reply. It is durable when this event arrives, unless this very turn forgot what it was made
    from. `output` is its value where the agent has an output type.
    """

    type: Literal["reply"] = "reply"
    text: str
    memories: tuple[RecalledMemory, ...]
    exchange_id: str
    session_id: str
    status: Literal["complete", "interrupted"]
    stop_reason: str
    usage: Usage
    output: Any = None


class Stored(_Event):
    """The exchange became a memory with a trace of its own and can be recalled from now on."""

    type: Literal["stored"] = "stored"
    memory_id: str


Event = Recalled | TokenDelta | ToolCall | ToolResult | Reply | Stored
