"""`Agent`: a conversation that remembers. One turn is written down, routed, paged, answered and
remembered.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Generator
from threading import Event as Flag
from threading import Lock, get_ident

from mnemos.agent.events import Event, Reply
from mnemos.agent.pooled_turn import PooledTurn
from mnemos.agent.prompt import PromptBuilder
from mnemos.agent.runtime import Runtime
from mnemos.agent.turn import Turn
from mnemos.agent.working import WorkingMemory
from mnemos.attention.models import LanguageModel
from mnemos.attention.sampling import Sampling
from mnemos.errors import InvalidTextError, UsageError
from mnemos.memory.bank import DEFAULT_NAMESPACE, MemoryBank, check_size
from mnemos.memory.recall import DEFAULT_K

DEFAULT_SAMPLING = Sampling(max_tokens=256, repetition_penalty=1.1)
WORKING_TOKENS = 1024
_POLL_S = 0.005


class Agent:
    """Answers messages with the memories of one namespace in view, and remembers each exchange.

    `model` is a loaded model, a name or path to load, or None for the default one. `session` continues an
    earlier session. `k` is the most memories read for a reply. With `rounds` above 1, what was
    recalled joins the question of another round of recall. One turn runs at a time; a second caller waits.

    Agents of one model and one bank may run at once, in threads or in tasks: their replies are decoded
    together. `runtime` bounds how many; without one, all agents of a model share its own.
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
        rounds: int = 1,
        runtime: Runtime | None = None,
    ) -> None:
        if k < 0:
            raise UsageError(f"k must be 0 or more, not {k}")
        if rounds < 1:
            raise UsageError(f"rounds must be 1 or more, not {rounds}")
        self.bank = bank
        self.namespace = namespace
        self._named_model = model
        self._instructions = instructions
        self._session_id = None if session is None else bank.get_session(session, namespace=namespace).id
        self._k = k
        self._sampling = sampling
        self._working_tokens = working_tokens
        self._rounds = rounds
        self._runtime = runtime
        self._working: WorkingMemory | None = None
        self._lock = Lock()  # one turn at a time
        self._busy_in: int | None = None  # thread whose turn holds the lock

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
        from mnemos.attention.models import load_shared

        named = self._named_model
        loaded = self.bank.recaller().model if named is None else load_shared(named)
        self._named_model = loaded
        return loaded

    @property
    def runtime(self) -> Runtime:
        """Where this agent's turns get their places; loads the model."""
        return self._runtime or Runtime.of(self.model)

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
        while not self._lock.acquire(blocking=False):  # waiting in a thread could starve the turn that runs
            await asyncio.sleep(_POLL_S)
        try:
            runtime = self._runtime or await asyncio.to_thread(lambda: self.runtime)  # it may load the model
            await runtime.enter_async()
        except BaseException:
            self._lock.release()
            raise
        self._busy_in = get_ident()
        stop = Flag()
        turn = self._turn(text, stop)
        try:
            while (event := await runtime.in_thread(next, turn, None)) is not None:
                yield event
        finally:
            stop.set()  # a step still running in its thread ends at the next token
            await asyncio.shield(runtime.in_thread(self._finish, turn, runtime))

    def stream_sync(self, text: str) -> Generator[Event]:
        """The turn's events as they come. Closing the iterator early marks the partial reply as
        interrupted.
        """
        if self._busy_in == get_ident():
            raise UsageError(
                "a turn of this agent is still open in this thread; read it to its end or close it"
            )
        with self._lock, self.runtime.turn():
            self._busy_in = get_ident()
            try:
                yield from self._turn(text, Flag())
            finally:
                self._busy_in = None

    def _finish(self, turn: Generator[Event], runtime: Runtime) -> None:
        """Close a turn, waiting for a step that still runs in another thread, and let the next one begin."""
        try:
            while True:
                try:
                    turn.close()
                    return
                except ValueError as error:
                    if "already executing" not in str(error):
                        raise
                    time.sleep(_POLL_S)
        finally:
            self._busy_in = None
            runtime.leave()
            self._lock.release()

    def _turn(self, text: str, stop: Flag) -> Generator[Event]:
        check_size(text)
        if not text.strip():
            raise InvalidTextError("the message is empty; nothing was stored")
        recaller = self.bank.recaller(self.model)
        if self._working is None or self._working.recaller is not recaller:
            prompts = PromptBuilder(recaller.model, self._instructions)
            self._working = WorkingMemory(recaller, prompts, self._working_tokens)
        words = recaller.model.tokenizer.encode(text)
        self._working.check_fits(words)
        kind = Turn if recaller.model.config.msa is None else PooledTurn
        turn = kind(
            self.bank,
            self._working,
            namespace=self.namespace,
            session_id=self.session_id,
            k=self._k,
            sampling=self._sampling,
            stop=stop,
            rounds=self._rounds,
        )
        with self._working.in_use():
            yield from turn.run(text, words)
