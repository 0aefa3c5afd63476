"""`Agent`: a conversation that remembers. One turn is written down, routed, paged, answered and
remembered.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable
from threading import Event as Flag
from threading import Lock, get_ident
from typing import Any

from mnemos.agent.abilities import MAX_STEPS, OUTPUT_RETRIES, Abilities, Answerer, ToolChoice
from mnemos.agent.events import Event, Reply
from mnemos.agent.output import OutputType
from mnemos.agent.pooled_turn import PooledTurn
from mnemos.agent.prompt import PromptBuilder
from mnemos.agent.tools.tool import Tool
from mnemos.agent.tools.toolbox import Toolbox
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

    `tools` are functions that the model may call, of which `@tool` says more, in up to `max_steps` steps of
    decoding a turn. With an `output_type` a reply is a value of that type, `Reply.output`; one that fails
    pydantic's validation is asked for again, `output_retries` times. Both are decoded by a grammar.
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
        tools: Iterable[Tool[..., Any] | Callable[..., Any]] = (),
        tool_choice: ToolChoice = "auto",
        output_type: Any = None,
        output_retries: int = OUTPUT_RETRIES,
        max_steps: int = MAX_STEPS,
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
        output = None if output_type is None else OutputType(output_type)
        self._abilities = Abilities(Toolbox(tools), output, max_steps, tool_choice, output_retries)
        self._answerer: Answerer | None = None
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
        from mnemos.attention.models import load

        named = self._named_model
        loaded = self.bank.recaller().model if named is None else load(named)
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
        while not self._lock.acquire(blocking=False):  # waiting in a thread could starve the turn that runs
            await asyncio.sleep(_POLL_S)
        self._busy_in = get_ident()
        stop = Flag()
        turn = self._turn(text, stop, asyncio.get_running_loop())
        try:
            while (event := await asyncio.to_thread(next, turn, None)) is not None:
                yield event
        finally:
            stop.set()  # a step still running in its thread ends at the next token
            await asyncio.shield(asyncio.to_thread(self._finish, turn))

    def stream_sync(self, text: str) -> Generator[Event]:
        """The turn's events as they come. Closing the iterator early marks the partial reply as
        interrupted.
        """
        if self._busy_in == get_ident():
            raise UsageError(
                "a turn of this agent is still open in this thread; read it to its end or close it"
            )
        with self._lock:
            self._busy_in = get_ident()
            try:
                yield from self._turn(text, Flag())
            finally:
                self._busy_in = None

    def _finish(self, turn: Generator[Event]) -> None:
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
            self._lock.release()

    def _turn(self, text: str, stop: Flag, loop: asyncio.AbstractEventLoop | None = None) -> Generator[Event]:
        check_size(text)
        if not text.strip():
            raise InvalidTextError("the message is empty; nothing was stored")
        recaller = self.bank.recaller(self.model)
        if recaller.model.config.msa is not None and self._abilities:
            raise UsageError(
                f"{recaller.model.name} reads pooled memories, where tools and output types are not at hand; "
                "use a model that reads them in full, or leave tools= and output_type= out"
            )
        if self._answerer is None or self._working is None or self._working.recaller is not recaller:
            self._answerer = Answerer(recaller.model, self._abilities)
            prompts = PromptBuilder(recaller.model, self._instructions, self._answerer.system)
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
            answerer=self._answerer,
            rounds=self._rounds,
            loop=loop,
        )
        with self._working.in_use():
            yield from turn.run(text, words)
