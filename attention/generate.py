"""Decoding one token after another, and the text of it, until a reason to stop."""

from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum

from torch import Tensor

from mnemos.attention.decoder import Decoder
from mnemos.attention.kv import KVCache
from mnemos.attention.logit_mask import LogitMask
from mnemos.attention.lookup import Lookahead, can_look_ahead
from mnemos.attention.sampling import Sampler, Sampling
from mnemos.attention.tokenizer import Detokenizer
from mnemos.errors import ContextOverflowError


class StopReason(StrEnum):
    """Why a generation ended."""

    EOS = "eos"  # the model ended its turn
    LENGTH = "length"  # max_tokens
    WINDOW = "window"  # the model's window, or the cache, is full
    TEXT = "text"  # a stop text appeared
    INTERRUPTED = "interrupted"  # the caller asked for it


class Generation(Iterator[int]):
    """The tokens of one reply as they are decoded. The end-of-turn token is not among them.

    A token is run through the model when the one after it is asked for: the cache holds the KV of all of
    `tokens` but those in `pending`.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        first_logits: Tensor,
        sampling: Sampling,
        *,
        eos_ids: frozenset[int],
        history: Sequence[int] = (),
        should_stop: Callable[[], bool] | None = None,
        drafts: Sequence[Sequence[int]] | None = (),
        mask: LogitMask | None = None,
    ) -> None:
        self.tokens: list[int] = []
        self.pending: list[int] = []
        self.stop_reason: StopReason | None = None
        self._decoder = decoder
        self._cache = cache
        self._logits = first_logits  # [vocab]
        self._sampler = Sampler(sampling)
        self._eos_ids = eos_ids
        self._history = list(history)
        self._should_stop = should_stop
        self._mask = mask
        self.lookahead: Lookahead | None = None
        if drafts is not None and can_look_ahead(decoder, cache):
            self.lookahead = Lookahead(decoder, cache, drafts)

    def __next__(self) -> int:
        if self.stop_reason is None and (token := self._advance()) is not None:
            self.tokens.append(token)
            self._history.append(token)
            self.pending = [token]
            return token
        raise StopIteration

    def stop(self, reason: StopReason) -> None:
        """Ends the generation; a reason that is already given stays."""
        self.stop_reason = self.stop_reason or reason

    def _advance(self) -> int | None:
        """The next token, or None with a stop reason set."""
        if self._should_stop is not None and self._should_stop():
            self.stop(StopReason.INTERRUPTED)
        elif self._mask is not None and self._mask.is_finished(self.tokens):
            self.stop(StopReason.EOS)
        elif len(self.tokens) >= self._sampler.sampling.max_tokens:
            self.stop(StopReason.LENGTH)
        elif self._run_pending():
            allowed = None if self._mask is None else self._mask.allowed(self.tokens)
            token = self._sampler(self._logits, self._history, allowed)
            if token not in self._eos_ids:
                return token
            self.stop(StopReason.EOS)
        return None

    def _run_pending(self) -> bool:
        if self.pending:
            try:
                self._logits = self._after(self.pending)
            except ContextOverflowError:
                self.stop(StopReason.WINDOW)
                return False
            self.pending = []
        return True

    def _after(self, tokens: list[int]) -> Tensor:
        """Logits after one more token, `[vocab]`."""
        if self.lookahead is not None:
            return self.lookahead.step(tokens[0])
        return self._decoder.forward(tokens, self._cache)


def generate(
    decoder: Decoder,
    cache: KVCache,
    first_logits: Tensor,
    sampling: Sampling,
    *,
    eos_ids: frozenset[int],
    history: Sequence[int] = (),
    should_stop: Callable[[], bool] | None = None,
    drafts: Sequence[Sequence[int]] | None = (),
    mask: LogitMask | None = None,
) -> Generation:
    """Decodes from `first_logits [vocab]`, those of the last token in `cache`, appending to the cache.

    `history` is earlier tokens that the repetition penalty counts. `should_stop()` is asked before each
    token. `drafts` are token sequences that the reply may quote, None turns looking ahead off: the reply is
    the same, only its speed may differ. `mask` says which tokens may come. Iterate the result for token ids;
    afterwards its `stop_reason` says why it ended.
    """
    return Generation(
        decoder,
        cache,
        first_logits,
        sampling,
        eos_ids=eos_ids,
        history=history,
        should_stop=should_stop,
        drafts=drafts,
        mask=mask,
    )


def text_pieces(generation: Generation, detokenizer: Detokenizer, stop: Sequence[str] = ()) -> Iterator[str]:
    """The text of a generation, piece by piece; none is empty.

    Ends where the first `stop` text to be complete begins, holding back only what may still become one.
    """
    held = ""
    for token in generation:
        held += detokenizer.push(token)
        found = _first(held, stop)
        if found is not None:
            generation.stop(StopReason.TEXT)
            held = held[:found]
            break
        safe = len(held) - _possible_start(held, stop)
        if safe:
            yield held[:safe]
            held = held[safe:]
    else:
        held += detokenizer.finish()
        found = _first(held, stop)
        held = held if found is None else held[:found]
    if held:
        yield held


def _first(text: str, stop: Sequence[str]) -> int | None:
    """Where the earliest stop text begins."""
    return min((at for at in (text.find(each) for each in stop) if at >= 0), default=None)


def _possible_start(text: str, stop: Sequence[str]) -> int:
    """Characters at the end of `text` that may be the start of a stop text."""
    longest = max((len(each) - 1 for each in stop), default=0)
    for length in range(min(longest, len(text)), 0, -1):
        if any(each.startswith(text[-length:]) for each in stop):
            return length
    return 0
