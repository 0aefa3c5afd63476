"""How a turn is laid out for the model.

    [system head][memory header]  [memories ...]  [instructions][system tail][working memory][message][reply
    head]
     the frozen prefix             paged in        prefilled

Without memories the frozen prefix is followed by nothing that needs it, so the system turn holds the
instructions alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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


class PromptBuilder:
    """Token ids of prompts. Words of people are never read as control tokens."""

    def __init__(self, model: LanguageModel, instructions: str | None) -> None:
        self._tokenizer = model.tokenizer
        self.turn = TurnTokens.of(model)
        self._instructions = instructions

    @property
    def instructions(self) -> str | None:
        """As they were given; None for the usual ones."""
        return self._instructions

    def with_memories(self) -> list[int]:
        """What closes the system turn behind paged memories."""
        words = self._tokenizer.encode(f"{self._instructions}\n") if self._instructions else []
        return [*words, *self.turn.system_tail]

    def without_memories(self) -> list[int]:
        """A whole system turn, for a reply that no memory matters to."""
        words = self._tokenizer.encode(self._instructions or DEFAULT_INSTRUCTIONS)
        return [*self.turn.system_head, *words, *self.turn.system_tail]

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

    def fit(self, exchanges: Sequence[Memory], budget_tokens: int) -> tuple[list[Memory], list[int]]:
        """The newest exchanges that fit the budget, oldest first, and their token ids."""
        kept: list[Memory] = []
        parts: list[list[int]] = []
        left = budget_tokens
        for memory in reversed(exchanges):
            ids = self.exchange(memory)
            if len(ids) > left:
                break
            left -= len(ids)
            kept.append(memory)
            parts.append(ids)
        return kept[::-1], [token for ids in reversed(parts) for token in ids]
