"""`Generator`: what else may write an agent's replies. The agent's own model still routes and recalls.

A generator reads memories as text: their words leave this process. Nothing of the bank's KV is used for the
reply, which is why such turns say `mode="text"`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from mnemos.agent.prompt import DEFAULT_INSTRUCTIONS
from mnemos.agent.stopping import Stop
from mnemos.attention.sampling import Sampling
from mnemos.memory.layout import MEMORY_HEADER, render_memory
from mnemos.memory.records import Memory, RecalledMemory

MAX_REPLY_CHARS = 200_000  # a generator that says more is cut off there


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation as chat servers take it."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Finish:
    """How a generation ended. Token counts are the generator's own; None where it doesn't tell."""

    reason: str
    prompt_tokens: int | None = None
    reply_tokens: int | None = None


@runtime_checkable
class Generator(Protocol):
    """Writes a reply to a conversation."""

    @property
    def name(self) -> str:
        """What replies are said to be by, for people: a model and where it runs, no secret."""
        ...

    def generate(
        self, messages: Sequence[ChatMessage], sampling: Sampling, stop: Stop
    ) -> Iterator[str | Finish]:
        """Pieces of text as they come, then a `Finish`. It ends soon after `stop.is_set()`, by `Finish` of
        "interrupted".

        Raises a `GeneratorError`, whose message holds no words of the conversation.
        """
        ...


def conversation(
    instructions: str | None, recalled: Sequence[RecalledMemory], past: Sequence[Memory], message: str
) -> list[ChatMessage]:
    """The messages of a turn: instructions with the recalled memories, recent turns, and the message."""
    system = instructions or DEFAULT_INSTRUCTIONS
    if recalled:
        lines = [line for each in recalled for line in render_memory(each.memory)]
        system = f"{system}\n\n{MEMORY_HEADER}{''.join(lines)}".rstrip()
    messages = [ChatMessage("system", system)]
    for memory in past:
        messages.append(ChatMessage("user", memory.text))
        messages.append(ChatMessage("assistant", memory.reply or ""))
    return [*messages, ChatMessage("user", message)]
