"""Working memory: the recent turns, attended densely, and their KV kept between turns."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock

from mnemos.agent.prompt import PromptBuilder
from mnemos.attention.kv import KVCache
from mnemos.errors import ContextOverflowError
from mnemos.memory.read_budget import PAGED_TOKENS
from mnemos.memory.recall import Recaller
from mnemos.memory.records import Memory

_LONGEST_WINDOW = 16384  # tokens; a longer window of the model is not used for routing
_REPLY_ROOM = 256  # tokens of the window kept free for a reply


class WorkingMemory:
    """A conversation's caches: one of [prefix][system tail][recent turns] to route behind, which grows with
    it, and one to answer from while no memories are in view.

    After an erase nothing of it is used again: its KV may have been computed from what was erased.
    """

    def __init__(self, recaller: Recaller, prompts: PromptBuilder, budget_tokens: int) -> None:
        self.recaller = recaller
        self.prompts = prompts
        self._window = min(recaller.model.config.max_positions, _LONGEST_WINDOW)
        self._budget = min(budget_tokens, self._window // 4)
        self._cache: KVCache | None = None
        self._tokens: list[int] = []
        self._exchanges: dict[Memory, list[int]] = {}  # in the cache, and their tokens
        self._answer: KVCache | None = None  # of the last reply that was made without memories in view
        self._answer_tokens: list[int] = []
        self._epoch = -1
        self._in_use = Lock()
        recaller.watch(self)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """While a turn runs: an erase then leaves the clearing to the end of the turn."""
        with self._in_use:
            try:
                yield
            finally:
                if self.recaller.epoch != self._epoch:
                    self._clear()

    def erased(self) -> None:
        """Something was erased: overwrite the cache now, or at the end of the turn that is using it."""
        if self._in_use.acquire(blocking=False):
            try:
                self._clear()
            finally:
                self._in_use.release()

    def check_fits(self, words: Sequence[int]) -> None:
        """Raises `ContextOverflowError` when a message leaves no room for memories and a reply."""
        system = max(len(self.prompts.with_memories()), len(self.prompts.without_memories()))
        taken = min(PAGED_TOKENS, self._window // 4) + self._budget + _REPLY_ROOM + system
        room = max(self._window - taken, 0)
        if len(words) > room:
            raise ContextOverflowError(
                f"the message has {len(words)} tokens, the model reads at most {room} in one message; "
                "nothing was stored. Put long texts in a file and `mnemos ingest` it"
            )

    @property
    def budget_tokens(self) -> int:
        """Most tokens of recent turns."""
        return self._budget

    def last_reply(self, seen: Sequence[Memory]) -> list[int]:
        """Tokens of the latest reply: a small model otherwise likes to give the same one again."""
        return self.recaller.model.tokenizer.encode(seen[-1].reply or "") if seen else []

    def route_context(self, past: Sequence[Memory]) -> tuple[KVCache, list[Memory], list[int]]:
        """The cache to route behind, prefilled with what is new only; the turns in it, and their tokens."""
        self.recaller.refresh()
        if self.recaller.epoch != self._epoch:
            self._clear()
        self._exchanges = self.prompts.fit(past, self._budget, self._exchanges)
        ids = [token for tokens in self._exchanges.values() for token in tokens]
        wanted = [*self.prompts.with_memories(), *ids, *self.prompts.turn.user_head]
        if self._cache is None:
            self._cache = self.recaller.new_context(self._window)
            self._epoch = self.recaller.epoch
        cache = self._cache
        shared = _shared_length(self._tokens, wanted)
        start = self.recaller.encoder.prefix.tokens + shared
        cache.truncate(start, start)
        self._tokens = wanted[:shared]
        if shared < len(wanted):
            self.recaller.model.decoder.prefill(wanted[shared:], cache)
        self._tokens = wanted
        return cache, list(self._exchanges), ids

    def answer_context(self, prompt: Sequence[int], room: int) -> tuple[KVCache, list[int]]:
        """A cache of `room` slots or more for a reply without memories in view, and what is new of `prompt`.

        The cache holds what `prompt` shares with the last such prompt; the words of replies are read anew, as
        every other reader of them does. `keep_answer` says that the prompt was read.
        """
        cache, shared = self._answer, 0
        if cache is None or cache.capacity < room or self.recaller.epoch != self._epoch:
            if cache is not None:
                cache.zero_()
            cache = self._answer = self.recaller.model.decoder.new_cache(max(room, self._window))
        else:
            shared = min(_shared_length(self._answer_tokens, prompt), len(prompt) - 1)
            cache.truncate(shared, shared)
        self._answer_tokens = []
        return cache, list(prompt[shared:])

    def keep_answer(self, cache: KVCache, prompt: Sequence[int]) -> bool:
        """Whether `cache`, which now begins with `prompt`, stays for the next turn; else its user clears
        it.
        """
        if cache is not self._answer:
            return False
        self._answer_tokens = list(prompt)
        return True

    def drop(self) -> None:
        """Overwrite and let go of everything; the next turn reads anew."""
        with self._in_use:
            self._clear()

    def _clear(self) -> None:
        for cache in (self._cache, self._answer):
            if cache is not None:
                cache.zero_()
        self._cache, self._tokens, self._exchanges = None, [], {}
        self._answer, self._answer_tokens = None, []


def _shared_length(old: Sequence[int], new: Sequence[int]) -> int:
    for index, (a, b) in enumerate(zip(old, new, strict=False)):
        if a != b:
            return index
    return min(len(old), len(new))
