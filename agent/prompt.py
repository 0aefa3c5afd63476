"""How a turn is laid out for the model.

    [system head][memory header]  [memories ...]  [instructions][system tail][working memory][message][reply
    head]
     the frozen prefix             paged in        prefilled

Without memories the frozen prefix is followed by nothing that needs it, so the system turn holds the
instructions alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from mnemos.attention.models import LanguageModel
from mnemos.memory.records import Memory, RecalledMemory

DEFAULT_INSTRUCTIONS = "You are a helpful assistant. Answer briefly and truthfully."


@dataclass(frozen=True, slots=True)
class TurnTokens:
    """Token ids of the parts of turns of one model."""

    system_head: list[int]
    system_tail: list[int]
    user_head: list[int]
    user_tail: list[int]
    reply_head: list[int]
    reply_tail: list[int]

    @classmethod
    def of(cls, model: LanguageModel) -> "TurnTokens":
        parts = [model.template.parts(role, model.tokenizer) for role in ("system", "user", "assistant")]
        (system_head, system_tail), (user_head, user_tail), (reply_head, reply_tail) = parts
        return cls(system_head, system_tail, user_head, user_tail, reply_head, reply_tail)


@dataclass(frozen=True, slots=True)
class SystemParts:
    """What tools and an output type change in the system turn. None leaves the template's own part."""

    words: str = ""  # behind the instructions
    head: Sequence[int] | None = None  # where no memories are in view
    behind_memories: Sequence[int] = ()  # what of the head stands behind the frozen prefix and the memories
    tail: Sequence[int] | None = None


class PromptBuilder:
    """Token ids of prompts. Words of people are never read as control tokens."""

    def __init__(
        self, model: LanguageModel, instructions: str | None, parts: SystemParts | None = None
    ) -> None:
        self._tokenizer = model.tokenizer
        self.turn = TurnTokens.of(model)
        self._instructions = instructions
        self._parts = parts or SystemParts()
        self._tail = self.turn.system_tail if self._parts.tail is None else self._parts.tail

    @property
    def instructions(self) -> str | None:
        """As they were given; None for the usual ones."""
        return self._instructions

    def with_memories(self) -> list[int]:
        """What closes the system turn behind paged memories."""
        return list(self._with_memories)

    @cached_property
    def _with_memories(self) -> list[int]:
        told = "\n\n".join(words for words in (self._instructions, self._parts.words) if words)
        words = self._tokenizer.encode(f"{told}\n") if told else []
        return [*self._parts.behind_memories, *words, *self._tail]

    def without_memories(self) -> list[int]:
        """A whole system turn, for a reply that no memory matters to."""
        return list(self._without_memories)

    @cached_property
    def _without_memories(self) -> list[int]:
        told = "\n\n".join(
            words for words in (self._instructions or DEFAULT_INSTRUCTIONS, self._parts.words) if words
        )
        head = self.turn.system_head if self._parts.head is None else self._parts.head
        return [*head, *self._tokenizer.encode(told), *self._tail]

    def words_of(self, memories: Iterable[RecalledMemory]) -> list[list[int]]:
        """Token ids of what each memory says: a reply may quote them."""
        said = (words for found in memories for words in (found.memory.text, found.memory.reply) if words)
        return [self._tokenizer.encode(words) for words in said]

    def exchange(self, memory: Memory) -> list[int]:
        """A past exchange as it stands in working memory."""
        user = self.message(memory.text)
        if memory.reply is None:
            return user
        reply = self._tokenizer.encode(memory.reply)
        return [*user, *self.turn.reply_head, *reply, *self.turn.reply_tail]

    def message(self, text: str) -> list[int]:
        return [*self.turn.user_head, *self._tokenizer.encode(text), *self.turn.user_tail]

    def fit(
        self, exchanges: Sequence[Memory], budget_tokens: int, known: Mapping[Memory, list[int]] | None = None
    ) -> dict[Memory, list[int]]:
        """The newest exchanges that fit the budget, oldest first, each with its token ids; those of `known`
        ones are taken from there.
        """
        kept: list[tuple[Memory, list[int]]] = []
        left = budget_tokens
        for memory in reversed(exchanges):
            ids = (known or {}).get(memory) or self.exchange(memory)
            if len(ids) > left:
                break
            left -= len(ids)
            kept.append((memory, ids))
        return dict(reversed(kept))
