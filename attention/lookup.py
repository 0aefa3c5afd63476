"""Prompt-lookup decoding: what a reply may go on with is guessed from the words it was made from.

A reply that quotes a memory repeats its tokens. Where the last few tokens stand in the prompt, in a memory or
earlier in the reply, those that follow there are a draft: they run through the model together with the token
that is due, for little more than its price, and their logits wait. Who draws tokens sees the logits it would
have seen anyway, to the last bit, so that a reply is the same with and without, sampled ones too.

The method is that of the assisted generation of arXiv 2304.04487, with its acceptance left to the sampler.
"""

from collections.abc import Iterable, Sequence

from torch import Tensor

from mnemos.attention.decoder import Decoder
from mnemos.attention.kv import KVCache
from mnemos.attention.pooled_cache import PooledCache

SHORTEST, LONGEST = 2, 5  # tokens that must be found again, by how well drafts have done
MOST_DRAFTED = 7  # with the token that is due: two full tiles of rows of the compiled products
_FIRST_DRAFTED = 3


class DraftIndex:
    """Token sequences, and where runs of `SHORTEST` to `LONGEST` of their tokens end."""

    def __init__(self, texts: Iterable[Sequence[int]] = ()) -> None:
        self._tokens: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}  # a run -> the place after its latest occurrence
        self._start = 0  # of the sequence that is growing: no run reaches across
        for text in texts:
            start, tokens = len(self._tokens), len(text)
            for length in range(SHORTEST, min(LONGEST + 1, tokens)):
                runs = zip(*(text[at : tokens - length + at] for at in range(length)), strict=True)
                self._ends.update(zip(runs, range(start + length, start + tokens), strict=True))
            self._tokens += text
        self._start = len(self._tokens)

    def append(self, token: int) -> None:
        """One more token of the last sequence. Runs that end with it are known once the next one has come."""
        end = len(self._tokens)
        for length in range(SHORTEST, LONGEST + 1):
            if end - length >= self._start:
                self._ends[tuple(self._tokens[end - length : end])] = end
        self._tokens.append(token)

    def draft(self, shortest: int, most: int) -> list[int]:
        """Up to `most` tokens that followed the longest run, of `shortest` tokens or more, that ends the last
        sequence.
        """
        here = len(self._tokens)
        for length in range(LONGEST, shortest - 1, -1):
            if here - length >= self._start:
                end = self._ends.get(tuple(self._tokens[here - length : here]))
                if end is not None:
                    return self._tokens[end : min(end + most, here)]
        return []


class Lookahead:
    """Steps of one generation, run ahead of what is asked for where a draft is at hand.

    The cache never counts a token that wasn't asked for. Drafts get longer while they come true; when they
    don't, longer runs have to be found again before the next.
    """

    def __init__(self, decoder: Decoder, cache: KVCache, texts: Iterable[Sequence[int]] = ()) -> None:
        self.drafted = 0
        self.accepted = 0
        self._decoder = decoder
        self._cache = cache
        self._index = DraftIndex(texts)
        self._ahead: list[int] = []  # tokens whose KV lies behind what the cache counts
        self._rows: list[Tensor] = []  # of each of them: the logits after it
        self._most = min(_FIRST_DRAFTED, decoder.draft_rows - 1)
        self._shortest = SHORTEST
        self._taken = 0  # tokens of the draft at hand, as many as there were at first

    def step(self, token: int) -> Tensor:
        """Append a token to the cache; the logits after it, `[vocab]`. Raises ContextOverflowError."""
        self._index.append(token)
        if self._ahead and self._ahead[0] == token:
            self._ahead.pop(0)
            self._cache.advance(1)
            self.accepted += 1
            if not self._ahead:
                self._learn(came_true=True)
            return self._rows.pop(0)
        if self._ahead:
            self._learn(came_true=False)
        room = min(
            self._cache.capacity - self._cache.length,
            self._cache.max_positions - self._cache.next_position,
        )
        most = min(self._most, room - 1, self._decoder.draft_rows - 1)
        draft = self._index.draft(self._shortest, most) if most > 0 else []
        if not draft:
            self._ahead, self._rows = [], []
            return self._decoder.forward([token], self._cache)
        length, position = self._cache.length, self._cache.next_position
        rows = self._decoder.step_rows([token, *draft], self._cache)
        self._cache.truncate(length + 1, position + 1)
        self._ahead, self._rows = draft, list(rows[1:])
        self.drafted += len(draft)
        self._taken = len(draft)
        return rows[0]

    def _learn(self, *, came_true: bool) -> None:
        if came_true:
            self._most = min(2 * self._most + 1, MOST_DRAFTED, self._decoder.draft_rows - 1)
            self._shortest = SHORTEST
        else:
            true = self._taken - len(self._ahead)
            self._most = max(true, 1)
            if not true:
                self._shortest = min(self._shortest + 1, LONGEST)


def can_look_ahead(decoder: Decoder, cache: KVCache) -> bool:
    """Whether a few tokens at once are cheaper than one by one, and the same."""
    return decoder.draft_rows > 1 and not isinstance(cache, PooledCache)
