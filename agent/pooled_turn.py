"""A turn on an MSA checkpoint: written down, answered by memory interleave, kept, remembered.

The model's own `top_k` says how many memories each layer reads; `k` of 0 reads none. Recent turns stand
before the question as plain text, which the checkpoint was not trained on but reads as any model does.
"""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing

from mnemos.agent.citing import cite
from mnemos.agent.events import Event, Recalled, TokenDelta, Usage
from mnemos.agent.turn import Turn
from mnemos.attention.generate import StopReason, text_pieces
from mnemos.attention.interleave import (
    Answered,
    Answering,
    Appended,
    Interleave,
    Named,
    Routed,
    Step,
)
from mnemos.attention.pooled import msa_of
from mnemos.attention.pooled_cache import Choices
from mnemos.attention.tokenizer import Detokenizer
from mnemos.errors import NotFoundError
from mnemos.memory.pooled_recall import Documents, PooledRecaller
from mnemos.memory.records import Memory, RecalledMemory


class PooledTurn(Turn):
    """As `Turn`, for a model that reads pooled memories."""

    def run(self, text: str, words: Sequence[int]) -> Generator[Event]:
        """The turn's events. Left early, it keeps the message and marks what came of the reply as
        interrupted.
        """
        started = time.perf_counter()
        recaller = self._working.recaller
        assert isinstance(recaller, PooledRecaller), "the recaller of a model that reads pooled memories"
        exchange = self._record.begin(text)
        done: Memory | None = None
        try:
            yield self._started(exchange)
            self._catch_up()
            past = self._past(exchange)
            self._seen = list(self._working.prompts.fit(past, self._working.budget_tokens))
            documents = (
                recaller.documents(self._namespace, self._not_recalled(exchange), self._where)
                if self._k
                else recaller.no_documents()
            )
            routing = time.perf_counter()
            answering = _Answering(recaller, self._namespace, documents)
            steps = Interleave(
                recaller.model.decoder,
                recaller.model.tokenizer,
                recaller.encoder.prefix,
                documents.keys,
                lambda numbers: recaller.texts_of(self._namespace, documents, numbers),
                sampling=self._sampling,
                should_stop=self._stop.is_set,
            ).run(text, recaller.model.tokenizer.encode(_as_text(self._seen)))
            first_ms, announced = 0.0, False
            for piece in answering.pieces(steps, self._sampling.stop):
                if not announced:
                    self._memories, announced = answering.memories(), True
                    route_ms = (time.perf_counter() - routing) * 1e3
                    first_ms = (time.perf_counter() - started) * 1e3
                    yield answering.recalled(self._memories, route_ms)
                self._pieces.append(piece)
                yield TokenDelta(text=piece)
            if not announced:
                self._memories = answering.memories()
                route_ms = (time.perf_counter() - routing) * 1e3
                yield answering.recalled(self._memories, route_ms)
            reply_text = "".join(self._pieces)
            decoded_ms = (time.perf_counter() - started) * 1e3
            self._memories = cite(tuple(self._memories), text, reply_text)
            is_cut = answering.stop_reason is StopReason.INTERRUPTED
            done = self._keep(exchange, reply_text, is_cut=is_cut)
        except BaseException as error:
            if done is None:
                self._leave(exchange, error)
            raise
        yield self._reply(
            done,
            reply_text,
            is_cut=is_cut,
            stop_reason=str(answering.stop_reason),
            usage=Usage(
                prefill_tokens=answering.prefill_tokens,
                paged_tokens=answering.paged_tokens,
                decoded_tokens=answering.decoded_tokens,
                route_ms=route_ms,
                page_ms=0.0,
                prefill_ms=0.0,
                first_token_ms=first_ms or decoded_ms,
                decode_ms=decoded_ms - (first_ms or decoded_ms),
                store_ms=self._record.store_ms,
            ),
        )
        yield from self._remember(done)


class _Answering:
    """What the steps of one answer have shown so far."""

    def __init__(self, recaller: PooledRecaller, namespace: str, documents: Documents) -> None:
        self._recaller, self._namespace, self._documents = recaller, namespace, documents
        self._choices: list[Choices] = []
        self._named: list[int] = []
        self.stop_reason: StopReason | None = None
        self.prefill_tokens = self.paged_tokens = self.decoded_tokens = 0

    def pieces(self, steps: Generator[Step], stop: Sequence[str]) -> Iterator[str]:
        """The text of the answer as it comes, up to the first of the `stop` texts."""
        with closing(steps):
            yield from self._pieces(steps, stop)

    def _pieces(self, steps: Iterator[Step], stop: Sequence[str]) -> Iterator[str]:
        for step in steps:
            if isinstance(step, Routed):
                self._choices.append(step.choices)
                self.prefill_tokens += step.prefill_tokens
                chunks = self._documents.keys.chunks
                self.paged_tokens = max(self.paged_tokens, sum(chunks[i] for i in step.choices.chosen))
            elif isinstance(step, Named):
                self._named += step.numbers
            elif isinstance(step, Appended):
                self.prefill_tokens += step.tokens
            elif isinstance(step, Answering):
                yield from text_pieces(step.generation, Detokenizer(self._recaller.model.tokenizer), stop)
            elif isinstance(step, Answered):
                self.stop_reason, self.decoded_tokens = step.stop_reason, len(step.tokens)

    def memories(self) -> tuple[RecalledMemory, ...]:
        """Every memory that a layer read or the model named: all that the answer depends on."""
        layers: dict[str, int] = {}
        for choices in self._choices:
            for documents in choices.documents.values():
                for index in documents:
                    memory_id = self._documents.ids[index]
                    layers[memory_id] = layers.get(memory_id, 0) + 1
        named = set(self._recaller.named(self._documents, self._named))
        most = max(layers.values(), default=1)
        ranked = sorted({*layers, *named}, key=lambda each: (each not in named, -layers.get(each, 0), each))
        found: list[RecalledMemory] = []
        for memory_id in ranked:
            memory = self._recaller.memory(self._namespace, memory_id)
            if memory is None:
                raise NotFoundError("a memory was forgotten while the reply was made from it; ask again")
            signals: Mapping[str, float] = {
                "layers": float(layers.get(memory_id, 0)),
                "named": float(memory_id in named),
            }
            score = layers.get(memory_id, 0) / most + (memory_id in named)
            found.append(
                RecalledMemory(memory=memory, rank=len(found) + 1, score=float(score), signals=signals)
            )
        return tuple(found)

    def recalled(self, memories: Sequence[RecalledMemory], route_ms: float) -> Recalled:
        decoder = self._recaller.model.decoder
        msa, config = msa_of(decoder), decoder.config
        chunk_bytes = 2 * len(msa.router_layers) * config.kv_heads * config.head_dim * decoder.dtype.itemsize
        return Recalled(
            memories=tuple(memories),
            route_ms=route_ms,
            page_ms=0.0,
            paged_tokens=self.paged_tokens,
            paged_bytes=self.paged_tokens * chunk_bytes,
        )


def _as_text(seen: Sequence[Memory]) -> str:
    return "".join(f"User: {memory.text}\nAssistant: {memory.reply or ''}\n" for memory in seen)
