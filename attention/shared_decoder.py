"""A decoder that several conversations use at once, each from a thread of its own."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mnemos.attention.batched_step import batch_logits, decode_batch
from mnemos.attention.decoder import Collect, Decoder
from mnemos.attention.kv import KVCache
from mnemos.attention.pooled_cache import PooledCache
from mnemos.attention.scheduling import Scheduler, pieces
from mnemos.errors import ContextOverflowError

_Row = tuple[Sequence[int], KVCache]  # the tokens of a step, mostly one, and the conversation's cache
_FEW = 2  # conversations; the rows of more are better spent on each one's next token than on guesses


class SharedDecoder(Decoder):
    """As `Decoder`, safe to use from several threads: steps of different caches run as one batch, and long
    prompts make way for them piece by piece.

    Who is alone gets just what `Decoder` does. A cache belongs to one thread at a time.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.scheduler: Scheduler[_Row, Tensor] = Scheduler(self._step_together)

    def forward(self, tokens: Sequence[int], cache: KVCache, *, collect: Collect | None = None) -> Tensor:
        """As `Decoder.forward`."""
        if len(tokens) == 1 and collect is None and not isinstance(cache, PooledCache):
            return self.scheduler.step(id(cache), (tokens, cache))[0]
        logits: Tensor = self._in_pieces(super().prefill, super().forward, tokens, cache, collect)
        return logits

    @property
    def draft_rows(self) -> int:
        """As `Decoder.draft_rows`; 1 in company."""
        return super().draft_rows if self.scheduler.company() <= _FEW else 1

    def step_rows(self, tokens: Sequence[int], cache: KVCache) -> Tensor:
        """As `Decoder.step_rows`."""
        if self.compiled is None or isinstance(cache, PooledCache):
            return super().step_rows(tokens, cache)
        return self.scheduler.step(id(cache), (tokens, cache))

    def forward_all(self, tokens: Sequence[int], cache: KVCache) -> Tensor:
        """As `Decoder.forward_all`, in one piece."""
        return self.scheduler.run(partial(super().forward_all, tokens, cache), len(tokens))

    def prefill(self, tokens: Sequence[int], cache: KVCache, *, collect: Collect | None = None) -> None:
        """As `Decoder.prefill`."""
        base = super().prefill
        self._in_pieces(base, base, tokens, cache, collect)

    def probe(self, tokens: Sequence[int], cache: KVCache, collect: Collect) -> None:
        """As `Decoder.probe`."""
        length, position = cache.length, cache.next_position
        try:
            self._in_pieces(self._look, self._look, tokens, cache, collect)
        finally:
            cache.truncate(length, position)

    @torch.inference_mode()
    def _look(self, tokens: Sequence[int], cache: KVCache, *, collect: Collect | None) -> None:
        assert collect is not None, "a probe collects something"
        self._look_at(tokens, cache, collect)

    def _in_pieces(
        self,
        first: Callable[..., None],
        last: Callable[..., Any],
        tokens: Sequence[int],
        cache: KVCache,
        collect: Collect | None,
    ) -> Any:
        """`last` of the tokens' last piece, after `first` of those before it; one piece for who is alone.

        No piece has one token, unless there is but one: a single token takes the way of a decode step.
        """
        size = self.scheduler.piece_tokens
        # What chooses documents by the rows of its prompt can't be cut.
        if len(tokens) <= size + 1 or isinstance(cache, PooledCache):
            return self.scheduler.run(partial(last, tokens, cache, collect=collect), len(tokens))
        cache.reserve(len(tokens))  # all of them or none
        length, position = cache.length, cache.next_position
        parts: list[Collect] = []
        left: Sequence[int] = tokens
        try:
            while True:
                piece = next(pieces(left, size)) if self.scheduler.is_shared() else left
                left = left[len(piece) :]
                part = _like(collect)
                if part is not None:
                    parts.append(part)
                found = self.scheduler.run(
                    partial(first if left else last, piece, cache, collect=part), len(piece)
                )
                if not left:
                    break
        except BaseException:
            cache.truncate(length, position)
            raise
        if collect is not None:
            _gather(parts, collect)
        return found

    @torch.inference_mode()
    def _step_together(self, rows: Sequence[_Row]) -> list[Tensor | Exception]:
        """The logits `[tokens, vocab]` of each row, or what went wrong with it alone."""
        outcomes: dict[int, Tensor | Exception] = {}
        fit: list[int] = []
        for index, (tokens, cache) in enumerate(rows):
            try:
                cache.reserve(len(tokens))
                fit.append(index)
            except ContextOverflowError as error:
                outcomes[index] = error
        if len(fit) > 1:
            try:
                found = self._many([rows[index] for index in fit])
                outcomes |= dict(zip(fit, found, strict=True))
                fit = []
            except Exception:  # of which row, shows when each runs alone; no cache has moved on
                pass
        for index in fit:
            try:
                outcomes[index] = self._one(*rows[index])
            except Exception as error:
                outcomes[index] = error
        return [outcomes[index] for index in range(len(rows))]

    def _many(self, rows: Sequence[_Row]) -> Sequence[Tensor]:
        if self.compiled is not None:
            return self.compiled.forward_many(self, rows)
        states = decode_batch(self, [tokens[0] for tokens, _ in rows], [cache for _, cache in rows])
        return list(torch.split(batch_logits(self, states), 1))

    def _one(self, tokens: Sequence[int], cache: KVCache) -> Tensor:
        if len(tokens) > 1:
            return super().step_rows(tokens, cache)
        return super().forward(tokens, cache)[None]


def _like(collect: Collect | None) -> Collect | None:
    """An empty one that asks for the same."""
    if collect is None:
        return None
    return Collect(
        collect.query_layers,
        collect.hidden_layers,
        collect.memory_mass,
        few_bits=collect.few_bits,
        threads=collect.threads,
    )


def _gather(parts: Sequence[Collect], into: Collect) -> None:
    """What the pieces of a prompt kept, as the whole prompt would have."""
    for layer in into.query_layers:
        into.queries[layer] = torch.cat([part.queries[layer] for part in parts], dim=1)
    for layer in into.hidden_layers:
        into.hidden[layer] = torch.cat([part.hidden[layer] for part in parts])
    masses = [part.mass for part in parts if part.mass is not None]
    if masses:
        into.mass = torch.stack(masses).sum(dim=0)
