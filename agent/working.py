"""Working memory: the recent turns, attended densely, and their KV kept between turns for routing."""

from collections.abc import Sequence

from mnemos.agent.prompt import PromptBuilder
from mnemos.attention.kv import KVCache
from mnemos.errors import ContextOverflowError
from mnemos.memory.recall import PAGED_TOKENS, Recaller
from mnemos.memory.records import Memory

_REPLY_ROOM = 256  # tokens of the window kept free for a reply


class WorkingMemory:
    """The routing side of a conversation: a cache of [prefix][system tail][recent turns] that grows with
    it.
    """

    def __init__(self, recaller: Recaller, prompts: PromptBuilder, budget_tokens: int) -> None:
        self.recaller = recaller
        self.prompts = prompts
        self._budget = budget_tokens
        self._cache: KVCache | None = None
        self._tokens: list[int] = []
        self._epoch = -1

    def check_fits(self, words: Sequence[int]) -> None:
        """Raises `ContextOverflowError` when a message leaves no room for memories and a reply."""
        window = self.recaller.model.config.max_positions
        room = window - min(PAGED_TOKENS, window // 4) - self._budget - _REPLY_ROOM
        if len(words) > room:
            raise ContextOverflowError(
                f"the message has {len(words)} tokens, the model reads at most {room} in one message; "
                "nothing was stored. Put long texts in a file and `mnemos ingest` it"
            )

    def last_reply(self, past: Sequence[Memory]) -> list[int]:
        """Tokens of the latest reply: a small model otherwise likes to give the same one again."""
        return self.recaller.model.tokenizer.encode(past[-1].reply or "") if past else []

    def route_context(self, past: Sequence[Memory]) -> tuple[KVCache, frozenset[str]]:
        """The cache to route behind, prefilled with what is new only, and the ids of the turns in it."""
        kept, ids = self.prompts.fit(past, self._budget)
        wanted = [*self.prompts.with_memories(), *ids, *self.prompts.turn.user_head]
        epoch = self.recaller.epoch
        if self._cache is None or epoch != self._epoch:
            if self._cache is not None:
                self._cache.zero_()  # a turn in it may have been erased
            prefix = self.recaller.encoder.prefix.tokens
            window = self.recaller.model.config.max_positions
            self._cache = self.recaller.new_context(window if window < 16384 else 16384)
            self._tokens, self._epoch = [], epoch
            assert self._cache.length == prefix
        cache = self._cache
        shared = _shared_length(self._tokens, wanted)
        start = self.recaller.encoder.prefix.tokens + shared
        cache.truncate(start, start)
        if shared < len(wanted):
            self.recaller.model.decoder.prefill(wanted[shared:], cache)
        self._tokens = wanted
        return cache, frozenset(memory.id for memory in kept)


def _shared_length(old: Sequence[int], new: Sequence[int]) -> int:
    for index, (a, b) in enumerate(zip(old, new, strict=False)):
        if a != b:
            return index
    return min(len(old), len(new))
