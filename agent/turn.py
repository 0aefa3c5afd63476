"""One turn: written down, routed, paged, answered, kept, remembered."""

import asyncio
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from typing import Any

from mnemos.agent.abilities import Answerer
from mnemos.agent.answering import Answering
from mnemos.agent.citing import cite
from mnemos.agent.events import Event, Recalled, RecallStarted, Reply, Stored, Usage
from mnemos.agent.recording import TurnRecord
from mnemos.agent.stopping import Stop
from mnemos.agent.tools.context import TurnMemories
from mnemos.agent.working import WorkingMemory
from mnemos.attention.decoder import Collect
from mnemos.attention.generate import StopReason
from mnemos.attention.kv import KVCache
from mnemos.attention.sampling import Sampling
from mnemos.errors import (
    BankError,
    BankLockedError,
    BankReadOnlyError,
    MnemosError,
    NotFoundError,
    PolicyError,
)
from mnemos.memory.bank import FROM_TOOL, MemoryBank, made_with
from mnemos.memory.recall import Recall
from mnemos.memory.records import Memory, RecalledMemory
from mnemos.memory.rounds import recall_in_rounds
from mnemos.store.selectors import Condition

_PAST = 64  # exchanges that working memory is made from


class Turn:
    """The steps of one turn and what it has produced so far."""

    def __init__(
        self,
        bank: MemoryBank,
        working: WorkingMemory,
        *,
        record: TurnRecord,
        k: int,
        sampling: Sampling,
        stop: Stop,
        answerer: Answerer,
        loop: asyncio.AbstractEventLoop | None = None,
        rounds: int = 1,
        where: Condition | None = None,
        may_encode: bool = True,
        exclude: frozenset[str] = frozenset(),
        past: Sequence[Memory] | None = None,
    ) -> None:
        self._bank = bank
        self._working = working
        self._record = record
        self._namespace = record.namespace
        self._where = where  # what may be recalled
        self._may_encode = may_encode
        self._exclude = exclude  # memories that are neither recalled nor in view
        self._given_past = past  # the exchanges before; None: the session's
        self._k = k
        self._sampling = sampling
        self._stop = stop
        self._rounds = rounds
        self._answerer = answerer
        self._loop = loop  # where async tools run
        self._tools: TurnMemories | None = None  # the bank as tools reach it, and what they found and wrote
        self._pieces: list[str] = []
        self._memories: Sequence[RecalledMemory] = ()
        self._seen: Sequence[Memory] = ()  # turns in working memory: the reply depends on them too

    def run(self, text: str, words: Sequence[int]) -> Generator[Event]:
        """The turn's events. Left early, it keeps the message and marks what came of the reply as
        interrupted.
        """
        started = time.perf_counter()
        recaller = self._working.recaller
        exchange = self._record.begin(text)
        done: Memory | None = None
        cache: KVCache | None = None
        is_kept = False
        try:
            yield self._started(exchange)
            self._catch_up()
            past = self._past(exchange)
            context, self._seen, kept = self._working.route_context(past)
            recall = recall_in_rounds(
                recaller,
                text,
                context,
                words,
                namespace=self._namespace,
                rounds=self._rounds,
                k=self._k,
                exclude=self._not_recalled(exchange),
                where=self._where,
            )
            self._memories = recall.memories
            yield Recalled(
                memories=recall.memories,
                route_ms=recall.route_ms,
                page_ms=recall.page_ms,
                paged_tokens=recall.tokens,
                paged_bytes=recall.bytes,
            )
            prefilling = time.perf_counter()
            cache, prompt, whole = self._prompt(recall, text, kept)
            collect = Collect(memory_mass=bool(recall.spans))
            model = recaller.model
            logits = model.decoder.forward(prompt, cache, collect=collect)
            is_kept = not self._record.is_changed and self._working.keep_answer(cache, whole)
            prefill_ms = (time.perf_counter() - prefilling) * 1e3
            self._tools = self._reach(exchange)
            answering = Answering(
                self._answerer,
                self._working.prompts,
                self._tools,
                sampling=self._sampling,
                history=self._working.last_reply(self._seen),
                drafts=[prompt, *self._working.prompts.words_of(recall.memories)],
                should_stop=self._stop.is_set,
                pieces=self._pieces,
                loop=self._loop,
            )
            first_ms = 0.0
            for event in answering.run(logits, cache):
                first_ms = first_ms or (time.perf_counter() - started) * 1e3
                yield event
            reply_text = "".join(self._pieces)
            decoded_ms = (time.perf_counter() - started) * 1e3
            self._memories = cite(self._with_found(_with_attention(recall, collect)), text, reply_text)
            is_cut = answering.stop_reason is StopReason.INTERRUPTED
            done = self._keep(exchange, reply_text, is_cut=is_cut)
        except BaseException as error:
            if done is None:
                self._leave(exchange, error)
            raise
        finally:
            if cache is not None and not is_kept:
                cache.zero_()
        yield self._reply(
            done,
            reply_text,
            is_cut=is_cut,
            stop_reason=str(answering.stop_reason),
            output=answering.output,
            usage=Usage(
                prefill_tokens=len(prompt) + answering.read_tokens,
                paged_tokens=recall.tokens,
                decoded_tokens=answering.decoded_tokens,
                route_ms=recall.route_ms,
                page_ms=recall.page_ms,
                prefill_ms=prefill_ms,
                first_token_ms=first_ms or decoded_ms,
                decode_ms=decoded_ms - (first_ms or decoded_ms),
                store_ms=self._record.store_ms,
            ),
        )
        yield from self._remember(done)

    def _reply(
        self, done: Memory, text: str, *, is_cut: bool, stop_reason: str, usage: Usage, output: Any = None
    ) -> Reply:
        """The event of a whole reply, and what of the turn is kept."""
        timed_out = is_cut and self._stop.timed_out
        return Reply(
            text=text,
            memories=tuple(self._memories),
            exchange_id=self._kept_id(done),
            session_id=self._record.session_id,
            status="timeout" if timed_out else "interrupted" if is_cut else "complete",
            stop_reason="timeout" if timed_out else stop_reason,
            usage=usage,
            stored=self._record.stored,
            output=output,
        )

    def _started(self, exchange: Memory) -> RecallStarted:
        return RecallStarted(exchange_id=self._kept_id(exchange), store_ms=self._record.store_ms)

    def _kept_id(self, exchange: Memory) -> str | None:
        return exchange.id if self._record.is_kept else None

    def _catch_up(self) -> None:
        """Makes the traces that are missing."""
        if not self._may_encode:
            return
        # A turn that keeps nothing need not wait for who is writing: it recalls what is encoded already.
        with suppress(*(() if self._record.is_kept else (BankLockedError, BankReadOnlyError))):
            self._working.recaller.encode_pending(self._namespace, should_stop=self._stop.is_set)

    def _keep(self, exchange: Memory, reply: str, *, is_cut: bool) -> Memory:
        """The exchange with its reply and provenance, durable; without them where the turn itself forgot what
        the reply was made from.
        """
        has_forgotten = self._tools is not None and self._tools.has_forgotten
        return self._record.complete(
            exchange,
            "" if has_forgotten else reply,
            status="interrupted" if is_cut else "complete",
            recalled=() if has_forgotten else self._memories,
            working=() if has_forgotten else self._seen,
            tools=() if has_forgotten or self._tools is None else self._tools.returned,
        )

    def _remember(self, done: Memory) -> Generator[Event]:
        """Makes the exchange a memory that can be recalled."""
        if not self._record.is_kept or self._stop.is_set():
            return  # the next turn makes the trace
        started = time.perf_counter()
        try:
            self._catch_up()
        except (BankError, NotFoundError):
            return  # the reply is durable; its trace is made at the next turn
        yield Stored(memory_id=done.id, kind=done.kind, encode_ms=(time.perf_counter() - started) * 1e3)

    def _leave(self, exchange: Memory, error: BaseException) -> None:
        """Keep what there is of a turn that `error` ends."""
        try:
            self._memories = self._with_found(self._memories)
            self._keep(exchange, "".join(self._pieces), is_cut=True)
        except (NotFoundError, PolicyError):
            # What the words were made from was forgotten meanwhile, so they may not stay either; nor may what
            # no policy has seen.
            self._keep_message_only(exchange, error)
        except MnemosError as second:
            error.add_note(f"The message is kept; its turn is closed later ({second})")

    def _keep_message_only(self, exchange: Memory, error: BaseException) -> None:
        try:
            self._record.complete(exchange, "", status="interrupted")
        except MnemosError as second:
            error.add_note(f"The message may be gone or its turn still open ({second})")

    def _reach(self, exchange: Memory) -> TurnMemories:
        """The bank as this turn's tools reach it. What they write depends on all that was in view."""
        reach = TurnMemories(
            self._bank,
            self._record,
            exchange_id=exchange.id,
            made_with=lambda: made_with(
                self._with_found(self._memories), [exchange, *self._seen], reach.returned
            ),
            where=self._where,
        )
        return reach

    def _with_found(self, recalled: Sequence[RecalledMemory]) -> list[RecalledMemory]:
        """What was recalled, and behind it what tools found in this turn."""
        known = {each.memory.id for each in recalled}
        found = [] if self._tools is None else list(self._tools.recalled.values())
        fresh = [each for each in found if each.memory.id not in known]
        return [
            *recalled,
            *(
                each.model_copy(update={"rank": rank, "signals": {**each.signals, FROM_TOOL: 1.0}})
                for rank, each in enumerate(fresh, len(recalled) + 1)
            ),
        ]

    def _past(self, exchange: Memory) -> list[Memory]:
        """The session's earlier exchanges, oldest first."""
        session_id = self._record.session_id
        earlier: Sequence[Memory] = self._given_past or ()
        if self._given_past is None and session_id is not None:
            earlier = self._bank.history(session_id, namespace=self._namespace, limit=_PAST)
        hidden = {exchange.id, *self._exclude}
        return [memory for memory in earlier if memory.id not in hidden and memory.reply]

    def _not_recalled(self, exchange: Memory) -> frozenset[str]:
        """What is in view already, and what may not be."""
        return self._exclude | {exchange.id, *(memory.id for memory in self._seen)}

    def _prompt(self, recall: Recall, text: str, kept: Sequence[int]) -> tuple[KVCache, list[int], list[int]]:
        """A cache with the memories paged in, the tokens that go behind what it holds, and all tokens behind
        the memories. `kept` are those of the turns in working memory.
        """
        prompts, recaller = self._working.prompts, self._working.recaller
        model = recaller.model
        start = prompts.with_memories() if recall.spans else prompts.without_memories()
        prompt = [*start, *kept, *prompts.message(text), *prompts.turn.reply_head]
        room = len(prompt) + min(self._answerer.room(self._sampling), model.config.max_positions)
        if not recall.spans:
            return *self._working.answer_context(prompt, room), prompt
        cache = recaller.new_context(recaller.encoder.prefix.tokens + recall.tokens + room)
        reading = model.calibration.reading_for(len(recall.spans))
        cache.page_in(
            recall.spans,
            temperature=reading.temperature,
            mass_scale=reading.mass_scale,
            stride=reading.stride,
        )
        return cache, prompt, prompt


def _with_attention(recall: Recall, collect: Collect) -> tuple[RecalledMemory, ...]:
    """The memories with their share of the attention that the message put on all of them."""
    if collect.mass is None:
        return recall.memories
    shares = [0.0] * len(recall.memories)
    start = 0
    for span, owner in zip(recall.spans, recall.owners, strict=True):
        shares[owner] += float(collect.mass[start : start + span.tokens].sum())
        start += span.tokens
    total = sum(shares) or 1.0
    return tuple(
        memory.model_copy(update={"attention": share / total})
        for memory, share in zip(recall.memories, shares, strict=True)
    )
