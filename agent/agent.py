"""`Agent`: a conversation that remembers. One turn is written down, routed, paged, answered and
remembered.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Generator
from threading import Event as Flag
from threading import Lock

from mnemos.agent.citing import cite
from mnemos.agent.events import Event, Recalled, Reply, Stored, TokenDelta, Usage
from mnemos.agent.prompt import PromptBuilder
from mnemos.agent.working import WorkingMemory
from mnemos.attention.decoder import Collect
from mnemos.attention.generate import StopReason, generate, text_pieces
from mnemos.attention.kv import KVCache
from mnemos.attention.models import LanguageModel
from mnemos.attention.sampling import Sampling
from mnemos.attention.tokenizer import Detokenizer
from mnemos.errors import UsageError
from mnemos.memory.bank import DEFAULT_NAMESPACE, MemoryBank, check_size
from mnemos.memory.recall import DEFAULT_K, Recall
from mnemos.memory.records import Memory, RecalledMemory

DEFAULT_SAMPLING = Sampling(max_tokens=256, repetition_penalty=1.1)
WORKING_TOKENS = 1024


class Agent:
    """Answers messages with the memories of one namespace in view, and remembers each exchange.

    `model` is a loaded model, a name or path to load, or None for the default one. `session` continues an
    earlier session. `k` is the most memories read for a reply. One turn runs at a time; a second caller
    waits.
    """

    def __init__(
        self,
        bank: MemoryBank,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        model: LanguageModel | str | None = None,
        instructions: str | None = None,
        session: str | None = None,
        k: int = DEFAULT_K,
        sampling: Sampling = DEFAULT_SAMPLING,
        working_tokens: int = WORKING_TOKENS,
    ) -> None:
        if k < 0:
            raise UsageError(f"k must be 0 or more, not {k}")
        self.bank = bank
        self.namespace = namespace
        self._named_model = model
        self._instructions = instructions
        self._session_id = None if session is None else bank.get_session(session, namespace=namespace).id
        self._k = k
        self._sampling = sampling
        self._working_tokens = working_tokens
        self._working: WorkingMemory | None = None
        self._lock = Lock()

    @property
    def session_id(self) -> str:
        """The session that turns are added to; made when first asked for."""
        if self._session_id is None:
            self._session_id = self.bank.create_session(self.namespace).id
        return self._session_id

    @property
    def model(self) -> LanguageModel:
        """The model; loaded when first asked for."""
        if isinstance(self._named_model, LanguageModel):
            return self._named_model
        from mnemos.attention.models import load

        loaded = load(self._named_model)
        self._named_model = loaded
        return loaded

    def run_sync(self, text: str) -> Reply:
        """One turn; its reply, once the exchange is stored."""
        reply = None
        for event in self.stream_sync(text):
            if isinstance(event, Reply):
                reply = event
        assert reply is not None, "a turn that ends without an error has a reply"
        return reply

    async def run(self, text: str) -> Reply:
        """As `run_sync`, without blocking the event loop."""
        reply = None
        async for event in self.stream(text):
            if isinstance(event, Reply):
                reply = event
        assert reply is not None, "a turn that ends without an error has a reply"
        return reply

    async def stream(self, text: str) -> AsyncIterator[Event]:
        """The turn's events as they come. Cancelling keeps the message and marks the partial reply as
        interrupted.
        """
        stop = Flag()
        turn = self._turn(text, stop)
        try:
            while (event := await asyncio.to_thread(next, turn, None)) is not None:
                yield event
        finally:
            stop.set()  # a step still running in its thread ends at the next token
            while True:
                try:
                    turn.close()
                    break
                except ValueError:  # the generator is still executing in the thread that was cancelled
                    await asyncio.sleep(0.01)

    def stream_sync(self, text: str) -> Generator[Event]:
        """The turn's events as they come. Closing the iterator early marks the partial reply as
        interrupted.
        """
        return self._turn(text, Flag())

    def _turn(self, text: str, stop: Flag) -> Generator[Event]:
        with self._lock:
            model, recaller = self.model, self.bank.recaller(self.model)
            started = time.perf_counter()
            if self._working is None or self._working.recaller is not recaller:
                prompts = PromptBuilder(model, self._instructions)
                self._working = WorkingMemory(recaller, prompts, self._working_tokens)
            working = self._working
            check_size(text)
            words = model.tokenizer.encode(text)
            working.check_fits(words)
            exchange = self.bank.begin_exchange(text, namespace=self.namespace, session_id=self.session_id)
            pieces: list[str] = []
            recall: Recall | None = None
            try:
                recaller.encode_pending(self.namespace)
                past = self._past(exchange)
                context, shown = working.route_context(past)
                recall = recaller.recall(
                    text, context, words, namespace=self.namespace, k=self._k, exclude=shown | {exchange.id}
                )
                yield Recalled(
                    memories=recall.memories,
                    route_ms=recall.route_ms,
                    page_ms=recall.page_ms,
                    paged_tokens=recall.tokens,
                    paged_bytes=recall.bytes,
                )
                cache, prompt = self._prompt(working, recall, past, text)
                collect = Collect(memory_mass=bool(recall.spans))
                logits = model.decoder.forward(prompt, cache, collect=collect)
                generation = generate(
                    model.decoder,
                    cache,
                    logits,
                    self._sampling,
                    eos_ids=model.tokenizer.eos_ids,
                    history=working.last_reply(past),
                    should_stop=stop.is_set,
                )
                first_ms = 0.0
                for piece in text_pieces(generation, Detokenizer(model.tokenizer), self._sampling.stop):
                    first_ms = first_ms or (time.perf_counter() - started) * 1e3
                    pieces.append(piece)
                    yield TokenDelta(text=piece)
                reply_text = "".join(pieces)
                memories = cite(_with_attention(recall, collect), text, reply_text)
                is_cut = generation.stop_reason is StopReason.INTERRUPTED
                done = self.bank.complete_exchange(
                    exchange, reply_text, status="interrupted" if is_cut else "complete", recalled=memories
                )
            except BaseException:
                self.bank.complete_exchange(
                    exchange,
                    "".join(pieces),
                    status="interrupted",
                    recalled=recall.memories if recall else (),
                )
                raise
            total_ms = (time.perf_counter() - started) * 1e3
            yield Reply(
                text=reply_text,
                memories=memories,
                exchange_id=done.id,
                session_id=self.session_id,
                status="interrupted" if is_cut else "complete",
                stop_reason=str(generation.stop_reason),
                usage=Usage(
                    prefill_tokens=len(prompt),
                    paged_tokens=recall.tokens,
                    decoded_tokens=len(generation.tokens),
                    route_ms=recall.route_ms,
                    page_ms=recall.page_ms,
                    first_token_ms=first_ms or total_ms,
                    decode_ms=total_ms - (first_ms or total_ms),
                ),
            )
            recaller.encode_pending(self.namespace)
            yield Stored(memory_id=done.id)

    def _past(self, exchange: Memory) -> list[Memory]:
        """The session's earlier exchanges, oldest first."""
        earlier = self.bank.list(self.namespace, session_id=self.session_id, newest_first=True, limit=64)
        return [m for m in reversed(earlier) if m.kind == "exchange" and m.id != exchange.id and m.reply]

    def _prompt(
        self, working: WorkingMemory, recall: Recall, past: list[Memory], text: str
    ) -> tuple[KVCache, list[int]]:
        """A cache with the memories paged in, and the tokens that go behind them."""
        prompts, model = working.prompts, self.model
        _, kept = prompts.fit(past, self._working_tokens)
        start = prompts.with_memories() if recall.spans else prompts.without_memories()
        prompt = [*start, *kept, *prompts.message(text), *prompts.turn.reply_head]
        room = len(prompt) + self._sampling.max_tokens
        if not recall.spans:
            return model.decoder.new_cache(room), prompt
        cache = working.recaller.new_context(working.recaller.encoder.prefix.tokens + recall.tokens + room)
        reading = model.calibration.reading_for(len(recall.spans))
        cache.page_in(recall.spans, temperature=reading.temperature, mass_scale=reading.mass_scale)
        return cache, prompt


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
