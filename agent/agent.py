"""`Agent`: a conversation that remembers. One turn is written down, routed, paged, answered and
remembered.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Generator, Iterable, Sequence
from contextlib import aclosing
from threading import Lock, get_ident
from typing import Any

from mnemos.agent.abilities import MAX_STEPS, OUTPUT_RETRIES, Abilities, Answerer, ToolChoice
from mnemos.agent.events import Event, Reply
from mnemos.agent.generators import Generator as ReplyGenerator
from mnemos.agent.observing import observed
from mnemos.agent.output import OutputType
from mnemos.agent.policies import WritePolicy
from mnemos.agent.pooled_turn import PooledTurn
from mnemos.agent.prompt import PromptBuilder
from mnemos.agent.recall_filter import recall_filter
from mnemos.agent.recording import TurnRecord
from mnemos.agent.runtime import Runtime
from mnemos.agent.stopping import Stop
from mnemos.agent.text_turn import TextTurn
from mnemos.agent.tools.tool import Tool
from mnemos.agent.tools.toolbox import Toolbox
from mnemos.agent.turn import Turn
from mnemos.agent.what_if import Scope, asked_again
from mnemos.agent.working import WorkingMemory
from mnemos.attention.models import LanguageModel
from mnemos.attention.sampling import Sampling
from mnemos.errors import (
    BankReadOnlyError,
    InterruptedTurnError,
    InvalidTextError,
    ModelError,
    UsageError,
)
from mnemos.memory.bank import DEFAULT_NAMESPACE, MemoryBank, check_size
from mnemos.memory.recall import DEFAULT_K
from mnemos.memory.records import Kind, Memory
from mnemos.store.ids import check_namespace, new_id
from mnemos.store.records import MemoryDraft
from mnemos.store.selectors import Condition

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

    `policies` see all that is about to be written, in their order. `recall` says which memories may be
    recalled, as a condition of `mnemos.store.selectors` or its text (`tag:work and since:30d`); the session's
    own turns stay in view. An agent that is `read_only` recalls and writes nothing at all; one that is
    `incognito` keeps nothing of its turns. With a `generator` the model only routes and recalls: the words of
    memories, of recent turns and of the message go to that generator, which writes the replies.

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
        runtime: Runtime | None = None,
        policies: Sequence[WritePolicy] = (),
        recall: Condition | str | None = None,
        read_only: bool = False,
        incognito: bool = False,
        generator: ReplyGenerator | None = None,
        tools: Iterable[Tool[..., Any] | Callable[..., Any]] = (),
        tool_choice: ToolChoice = "auto",
        output_type: Any = None,
        output_retries: int = OUTPUT_RETRIES,
        max_steps: int = MAX_STEPS,
    ) -> None:
        check_namespace(namespace)
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
        self._policies = tuple(policies)
        self._where = recall_filter(recall)
        self._read_only = read_only
        self._incognito = incognito
        self._generator = generator
        output = None if output_type is None else OutputType(output_type)
        self._abilities = Abilities(Toolbox(tools), output, max_steps, tool_choice, output_retries)
        if self._abilities and generator is not None:
            raise UsageError(
                f"the generator {generator.name} writes words, without tools or an output type; leave out "
                "tools= and output_type=, or generator="
            )
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

    def _begin_session(self) -> str:
        """The id of the session; the write that first names it makes it."""
        self._session_id = self._session_id or new_id()
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

    def run_sync(
        self,
        text: str,
        *,
        incognito: bool = False,
        timeout_s: float | None = None,
        exclude: Collection[str] = (),
    ) -> Reply:
        """One turn; its reply, once the exchange is stored.

        An `incognito` turn recalls and keeps nothing. Memories whose whole ids are in `exclude` are neither
        recalled nor in view. After `timeout_s` the turn ends with the reply as far
        as it came, kept as an interrupted one; its status says `timeout`.
        """
        reply = None
        for event in self.stream_sync(text, incognito=incognito, timeout_s=timeout_s, exclude=exclude):
            if isinstance(event, Reply):
                reply = event
        assert reply is not None, "a turn that ends without an error has a reply"
        return reply

    async def run(
        self,
        text: str,
        *,
        incognito: bool = False,
        timeout_s: float | None = None,
        exclude: Collection[str] = (),
    ) -> Reply:
        """As `run_sync`, without blocking the event loop."""
        reply = None
        async for event in self.stream(text, incognito=incognito, timeout_s=timeout_s, exclude=exclude):
            if isinstance(event, Reply):
                reply = event
        assert reply is not None, "a turn that ends without an error has a reply"
        return reply

    async def stream(
        self,
        text: str,
        *,
        incognito: bool = False,
        timeout_s: float | None = None,
        exclude: Collection[str] = (),
    ) -> AsyncIterator[Event]:
        """The turn's events as they come. Cancelling keeps the message and marks the partial reply as
        interrupted. Memories whose whole ids are in `exclude` are neither recalled nor in view.
        """
        async with aclosing(self._stream(text, Scope(incognito, frozenset(exclude)), timeout_s)) as events:
            async for event in events:
                yield event

    async def what_if(
        self, exchange_id: str, *, without: Collection[str], timeout_s: float | None = None
    ) -> AsyncIterator[Event]:
        """The events of an earlier exchange, answered again as if some memories (ids, or prefixes) had not
        been there.

        It sees what was remembered before the exchange, and the turns before it. Nothing is stored.
        Raises `NotFoundError`, `AmbiguousIdError`, and `UsageError` for a memory that is no exchange.
        """
        text, scope = await asyncio.to_thread(
            asked_again, self.bank, self.namespace, exchange_id, without, self._where
        )
        async with aclosing(self._stream(text, scope, timeout_s)) as events:
            async for event in events:
                yield event

    def what_if_sync(
        self, exchange_id: str, *, without: Collection[str], timeout_s: float | None = None
    ) -> Generator[Event]:
        """As `what_if`."""
        text, scope = asked_again(self.bank, self.namespace, exchange_id, without, self._where)
        yield from self._stream_sync(text, scope, timeout_s)

    async def _stream(self, text: str, scope: Scope, timeout_s: float | None) -> AsyncGenerator[Event]:
        stop = Stop(timeout_s)
        while not self._lock.acquire(blocking=False):  # waiting in a thread could starve the turn that runs
            if stop.timed_out:
                raise _never_begun()
            await asyncio.sleep(_POLL_S)
        try:
            runtime = await asyncio.to_thread(lambda: self.runtime)  # it may load the model
            await runtime.enter_async(stop.left_s())
        except BaseException:
            self._lock.release()
            raise
        self._busy_in = get_ident()
        turn = observed(self._turn(text, stop, scope, asyncio.get_running_loop()))
        try:
            while (event := await runtime.in_thread(next, turn, None)) is not None:
                yield event
        finally:
            stop.set()  # a step still running in its thread ends at the next token
            await asyncio.shield(runtime.in_thread(self._finish, turn, runtime))

    def stream_sync(
        self,
        text: str,
        *,
        incognito: bool = False,
        timeout_s: float | None = None,
        exclude: Collection[str] = (),
    ) -> Generator[Event]:
        """The turn's events as they come. Closing the iterator early marks the partial reply as
        interrupted. Memories whose whole ids are in `exclude` are neither recalled nor in view.
        """
        yield from self._stream_sync(text, Scope(incognito, frozenset(exclude)), timeout_s)

    def _stream_sync(self, text: str, scope: Scope, timeout_s: float | None) -> Generator[Event]:
        if self._busy_in == get_ident():
            raise UsageError(
                "a turn of this agent is still open in this thread; read it to its end or close it"
            )
        stop = Stop(timeout_s)
        if not self._lock.acquire(timeout=-1 if timeout_s is None else timeout_s):
            raise _never_begun()
        try:
            with self.runtime.turn(stop.left_s()):
                self._busy_in = get_ident()
                yield from observed(self._turn(text, stop, scope))
        finally:
            self._busy_in = None
            self._lock.release()

    def remember(
        self,
        text: str,
        *,
        kind: Kind = "note",
        title: str | None = None,
        source: str | None = None,
        tags: Sequence[str] = (),
    ) -> Memory | None:
        """Write a memory outside of any turn, through the agent's policies; None where one drops it."""
        if self._read_only or self._incognito:
            raise BankReadOnlyError("this agent keeps nothing; remember it with another one")
        record = TurnRecord(
            self.bank, namespace=self.namespace, session=self._begin_session, policies=self._policies
        )
        return record.remember(
            MemoryDraft(text, kind=kind, speaker="User", title=title, source=source, tags=tuple(tags))
        )

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

    def _turn(
        self, text: str, stop: Stop, scope: Scope, loop: asyncio.AbstractEventLoop | None = None
    ) -> Generator[Event]:
        check_size(text)
        if not text.strip():
            raise InvalidTextError("the message is empty; nothing was stored")
        recaller = self.bank.recaller(self.model)
        if recaller.model.config.msa is not None and self._abilities:
            raise UsageError(
                f"{recaller.model.name} reads pooled memories, where tools and output types are not at hand; "
                "use a model that reads them in full, or leave out tools= and output_type="
            )
        if self._answerer is None or self._working is None or self._working.recaller is not recaller:
            self._answerer = Answerer(recaller.model, self._abilities)
            prompts = PromptBuilder(recaller.model, self._instructions, self._answerer.system)
            self._working = WorkingMemory(recaller, prompts, self._working_tokens)
        words = recaller.model.tokenizer.encode(text)
        self._working.check_fits(words)
        working = self._working
        is_kept = not (scope.incognito or self._incognito or self._read_only)
        if not is_kept:  # its KV is this turn's alone
            working = WorkingMemory(recaller, working.prompts, self._working_tokens)
        record = TurnRecord(
            self.bank,
            namespace=self.namespace,
            session=self._begin_session,
            known_session=self._session_id,
            policies=self._policies,
            is_kept=is_kept,
        )
        answerer = self._answerer
        if scope.past is not None:  # asked again, a turn acts on nothing
            answerer = Answerer(recaller.model, Abilities(Toolbox([]), self._abilities.output))
        turn = self._kind(recaller.model)(
            self.bank,
            working,
            record=record,
            k=self._k,
            sampling=self._sampling,
            stop=stop,
            answerer=answerer,
            loop=loop,
            rounds=self._rounds,
            where=self._where if scope.where is None else scope.where,
            may_encode=not self._read_only,
            exclude=scope.exclude,
            past=scope.past,
        )
        if isinstance(turn, TextTurn):
            assert self._generator is not None, "a turn as text has a generator"
            turn.generator = self._generator
        try:
            with working.in_use():
                yield from turn.run(text, words)
        finally:
            if not record.is_kept or record.is_changed:  # what stays nowhere else may not stay here
                working.drop()

    def _kind(self, model: LanguageModel) -> type[Turn]:
        is_pooled = model.config.msa is not None
        if self._generator is None:
            return PooledTurn if is_pooled else Turn
        if is_pooled:
            raise ModelError(
                f"model {model.name} chooses memories layer by layer as it writes, so it can't recall for "
                "another generator; use a model that reads memories in full, such as the default one"
            )
        return TextTurn


def _never_begun() -> InterruptedTurnError:
    return InterruptedTurnError(
        "the turn's time was over while another turn of this agent ran; nothing was stored. Send it again"
    )
