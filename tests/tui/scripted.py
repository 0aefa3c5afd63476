"""An agent whose words are written down beforehand. The bank beneath it is a real one."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from mnemos import MemoryBank
from mnemos.agent.events import Event, Recalled, RecallStarted, Reply, Stored, TokenDelta, Usage
from mnemos.errors import MnemosError
from mnemos.tui.app.engine import Ask, Loaded, Opener, Progress, Tell


class ScriptedAgent:
    """Recalls by words, answers with the next of its replies, and keeps the exchange as the agent does."""

    def __init__(
        self,
        bank: MemoryBank,
        session: str | None,
        replies: Sequence[str],
        *,
        namespace: str = "default",
        pause_s: float = 0.0,
        error: MnemosError | None = None,
    ) -> None:
        self.bank, self.namespace, self.pause_s, self.error = bank, namespace, pause_s, error
        self._session, self._replies, self._turns = session, list(replies), 0

    @property
    def session_id(self) -> str:
        if self._session is None:
            self._session = self.bank.create_session(self.namespace).id
        return self._session

    def what_if(self, exchange_id: str, *, without: Collection[str]) -> AsyncIterator[Event]:
        text = self.bank.get(exchange_id, namespace=self.namespace).text
        return self.stream(text, incognito=True, exclude=[exchange_id, *without])

    async def stream(
        self, text: str, *, incognito: bool = False, exclude: Collection[str] = ()
    ) -> AsyncIterator[Event]:
        if self.error is not None:
            raise self.error
        whole = self._replies[self._turns % len(self._replies)]
        self._turns += 1
        exchange = None
        if not incognito:
            exchange = self.bank.begin_exchange(text, namespace=self.namespace, session_id=self.session_id)
        yield RecallStarted(exchange_id=exchange and exchange.id)
        found = self.bank.search(text, namespace=self.namespace, limit=3, router="lexical")
        hidden = {*exclude, exchange and exchange.id}
        found = [each for each in found if each.memory.id not in hidden]
        share = [0.6, 0.3, 0.1][: len(found)]
        found = [
            each.model_copy(update={"attention": part / sum(share), "cited": part == 0.6, "rank": at + 1})
            for at, (each, part) in enumerate(zip(found, share, strict=True))
        ]
        said: list[str] = []
        try:
            yield Recalled(
                memories=tuple(found), route_ms=12.0, page_ms=3.0, paged_tokens=40, paged_bytes=4096
            )
            for word in whole.split(" "):
                if self.pause_s:
                    await asyncio.sleep(self.pause_s)
                piece = word if not said else f" {word}"
                said.append(piece)
                yield TokenDelta(text=piece)
        except BaseException:
            if exchange is not None:
                self.bank.complete_exchange(exchange, "".join(said), status="interrupted", recalled=found)
            raise
        if exchange is not None:
            self.bank.complete_exchange(exchange, whole, recalled=found)
        yield Reply(
            text=whole,
            memories=tuple(found),
            exchange_id=exchange and exchange.id,
            session_id=self._session,
            status="complete",
            stop_reason="eos",
            usage=Usage(
                prefill_tokens=20,
                paged_tokens=40,
                decoded_tokens=len(said),
                route_ms=12.0,
                page_ms=3.0,
                prefill_ms=20.0,
                first_token_ms=40.0,
                decode_ms=25.0 * len(said),
            ),
        )
        if exchange is not None:
            yield Stored(memory_id=exchange.id)


def opener_at(path: Path) -> Opener:
    def opened(ask: Ask, tell: Tell, *, read_only: bool = False) -> AbstractContextManager[MemoryBank]:
        return MemoryBank.open(path, read_only=read_only)

    return opened


def loader_with(
    *replies: str,
    pause_s: float = 0.0,
    error: MnemosError | None = None,
    before: Callable[[], None] = lambda: None,
) -> Callable[[MemoryBank, str | None, Progress], Loaded]:
    """A loader whose agents say these replies, after `before` has run in the loading thread."""

    def load(bank: MemoryBank, name: str | None, progress: Progress) -> Loaded:
        before()
        progress("loading the model", 1, 1)
        return Loaded(
            name or "scripted",
            lambda namespace, session: ScriptedAgent(
                bank,
                session,
                replies or ("All right.",),
                namespace=namespace,
                pause_s=pause_s,
                error=error,
            ),
        )

    return load
