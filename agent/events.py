"""What a turn tells as it goes, as typed events in this order: Recalled, TokenDelta ..., Reply, Stored."""

from typing import Literal

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
    """The whole reply. It is durable when this event arrives."""

    type: Literal["reply"] = "reply"
    text: str
    memories: tuple[RecalledMemory, ...]
    exchange_id: str
    session_id: str
    status: Literal["complete", "interrupted"]
    stop_reason: str
    usage: Usage


class Stored(_Event):
    """The exchange became a memory with a trace of its own and can be recalled from now on."""

    type: Literal["stored"] = "stored"
    memory_id: str


Event = Recalled | TokenDelta | Reply | Stored
