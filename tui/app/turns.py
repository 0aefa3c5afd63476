"""The turns of the conversation, one at a time: what waits, what streams in, what is stopped or fails."""

import asyncio
from contextlib import aclosing
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from textual.worker import Worker, WorkerCancelled, WorkerFailed

from mnemos.errors import MnemosError, NotFoundError
from mnemos.tui.app.base import words_of
from mnemos.tui.app.conversation import Answer, Card, Said, count_of
from mnemos.tui.app.status import Speed

if TYPE_CHECKING:
    from mnemos.agent.events import Recalled, Reply
    from mnemos.memory.records import Memory
    from mnemos.tui.app.app import ChatApp
    from mnemos.tui.app.engine import Talker


class Turns:
    """Runs turns in the app's own loop; the agent's steps run in threads."""

    def __init__(self, app: "ChatApp") -> None:
        self._app = app
        self.waiting: list[Said] = []  # messages that are shown and not sent yet
        self._worker: Worker[None] | None = None
        self._is_stopping = False

    @property
    def is_running(self) -> bool:
        return self._worker is not None

    async def send(self, text: str, *, exclude: frozenset[str] = frozenset()) -> None:
        """Show a message, and answer it once the model is there and earlier ones are answered.

        Memories in `exclude` are not recalled for it.
        """
        said = Said(text, incognito=self._app.incognito, exclude=exclude)
        self.waiting.append(said)
        self._app.prompt.history.append(text)
        await self._app.conversation.put(said)
        self.go_on()

    def go_on(self) -> None:
        """Begin with the next message that waits, where that can be."""
        app = self._app
        if self.is_running or not self.waiting or app.loaded is None or not app.is_open:
            return
        self._is_stopping = False
        self._worker = app.run_worker(self._run(self.waiting.pop(0)), group="turn", exit_on_error=False)
        app.refresh_bindings()

    async def take_back(self) -> None:
        """Messages that wait go back into the prompt."""
        texts = [said.words for said in self.waiting]
        for said in self.waiting:
            await said.remove()
        self.waiting.clear()
        if texts:
            self._app.prompt.restore("\n".join(texts))

    def stop(self) -> bool:
        """Stop the turn that runs, once; whether there is one."""
        if self._worker is None:
            return False
        if not self._is_stopping:
            self._is_stopping = True
            self._app.status.working("stopping")
            self._worker.cancel()
        return True

    async def stopped(self) -> None:
        """Stop, and wait until what came of the reply is kept."""
        worker = self._worker
        if self.stop() and worker is not None:
            try:
                await worker.wait()
            except (WorkerCancelled, WorkerFailed):
                return

    async def _run(self, said: Said) -> None:
        app = self._app
        answer, started = Answer(incognito=said.incognito), datetime.now(UTC)
        app.status.working("recalling")
        talker: Talker | None = None
        try:
            await app.conversation.put(answer)
            assert app.loaded is not None
            talker = await asyncio.to_thread(app.talker)
            line = await self._stream(talker, said, answer)
            app.status.idle(line)
        except asyncio.CancelledError:
            if not app.is_closing:
                await self._interrupted(said, answer, started)
            raise
        except Exception as error:
            app.status.idle()
            await self._failed(said, answer, started, error)
        finally:
            if talker is not None:
                app.note_session(talker)
            self._worker = None
            if not app.is_closing:
                app.refresh_bindings()
                app.call_later(self.go_on)

    async def _stream(self, talker: "Talker", said: Said, answer: Answer) -> str:
        """Show a turn's events as they come; what to say of it afterwards."""
        from mnemos.agent.events import Recalled, RecallStarted, Reply, TokenDelta  # late: pydantic is slow

        app, speed, line = self._app, Speed(), ""
        stream = talker.stream(said.words, incognito=said.incognito, exclude=said.exclude)
        async with aclosing(stream) as events:  # type: ignore[type-var]
            async for event in events:
                if isinstance(event, RecallStarted):
                    said.exchange_id = event.exchange_id
                elif isinstance(event, Recalled):
                    line = line_of(event)
                    answer.show_memories(event.memories)
                    app.status.working(partial(speed.after, line))
                elif isinstance(event, TokenDelta):
                    speed.add()
                    answer.add(event.text)
                elif isinstance(event, Reply):
                    answer.exchange_id = said.exchange_id = event.exchange_id
                    answer.settle(event.text)
                    answer.show_memories(event.memories)
                    if event.status != "complete":
                        answer.set_mark("out of time" if event.status == "timeout" else "interrupted")
                    line = f"{line}  ·  {speed_of(event)}"
                    app.status.idle(line)  # what follows is off the reply's path
        return line

    async def _interrupted(self, said: Said, answer: Answer, started: datetime) -> None:
        answer.settle()
        answer.set_mark("interrupted")
        kept = None if said.incognito else await asyncio.to_thread(self._kept, said.words, started)
        if kept is not None:
            said.exchange_id = answer.exchange_id = kept.id
        self._app.status.idle(
            "stopped; nothing of it is stored"
            if said.incognito
            else "stopped; the reply is kept as far as it came"
        )

    async def _failed(self, said: Said, answer: Answer, started: datetime, error: Exception) -> None:
        """A card says what happened; a message that was not stored goes back into the prompt."""
        app = self._app
        kept = None if said.incognito else await asyncio.to_thread(self._kept, said.words, started)
        if kept is None:
            await answer.remove()
            await said.remove()
            app.prompt.restore(said.words)
        else:
            said.exchange_id = kept.id
            answer.settle()
            if isinstance(error, NotFoundError):
                answer.forget_words("reply forgotten with the memory it was made from")
            elif not answer.words:
                await answer.remove()
        await app.conversation.put(Card(words_of(error), error=True))

    def _kept(self, text: str, started: datetime) -> "Memory | None":
        """The exchange that the turn wrote down, if it came to that."""
        try:
            latest = self._app.bank.list(self._app.namespace, limit=3)
        except MnemosError:
            return None
        mine = (m for m in latest if m.kind == "exchange" and m.text == text and m.created_at >= started)
        return next(mine, None)


def line_of(event: "Recalled") -> str:
    """What was recalled and paged, and how long that took."""
    words = f"recall {event.route_ms:.0f} ms"
    if event.memories:
        words += (
            f"  ·  paged {count_of(len(event.memories))}, {event.paged_tokens} tokens, {event.page_ms:.0f} ms"
        )
    return words


def speed_of(reply: "Reply") -> str:
    seconds = max(reply.usage.decode_ms, 1.0) / 1e3
    return f"{reply.usage.decoded_tokens / seconds:.0f} tokens/s"
