"""`mnemos bench tui`: how soon the screen answers; the real apps, on Textual's driver without a terminal."""

import asyncio
import itertools
import os
import statistics
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual import events
from textual._compositor import CompositorUpdate
from textual.app import App, ComposeResult
from textual.pilot import Pilot
from textual.widgets import TextArea

from mnemos.agent.events import Event, Reply, TokenDelta, Usage
from mnemos.memory.bank import MemoryBank
from mnemos.store.bench_erase import NAMESPACE, make_texts
from mnemos.store.records import MemoryDraft
from mnemos.tui.app.app import ChatApp
from mnemos.tui.app.base import MemoryApp
from mnemos.tui.app.browse import BrowseApp
from mnemos.tui.app.engine import Ask, Loaded, Opener, Tell
from mnemos.tui.app.inspector import Inspector

if TYPE_CHECKING:
    from mnemos.store.keys import KeyProvider

_GROUP = 5000  # memories of one write
_WORDS = 12  # of one memory
_DAYS = 700  # over which they are spread
_PATIENCE_S = 120.0
_WAIT_S = 0.03  # between keys: faster than anybody types

_PROSE = (
    "Here is what I know. **Clara** is a nurse in Graz, and she likes hiking:\n\n"
    "- the Schöckl on weekends\n- the Dachstein in summer\n\n"
    "```python\ndef reach(days: int) -> float:\n    return 3.5 * days\n```\n\n"
)


class Painted:
    """Notes when the app has written a screen. Mixed into an app, whose driver shows nothing itself."""

    console: Any
    paints = 0

    def _display(self, screen: Any, renderable: Any) -> None:
        super()._display(screen, renderable)  # type: ignore[misc]
        if isinstance(renderable, CompositorUpdate):
            renderable.render_segments(self.console)  # as a terminal's driver does
        elif renderable is None:  # nothing on the screen is another
            return
        else:
            self.console._render_buffer(self.console.render(renderable))
        self.paints += 1
        self.painted.set()

    @property
    def painted(self) -> asyncio.Event:
        if not hasattr(self, "_painted"):
            self._painted = asyncio.Event()
        return self._painted

    async def until(self, is_reached: Callable[[], bool]) -> float:
        """The moment of the first paint after which it holds. TimeoutError."""
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                self.painted.clear()
                await self.painted.wait()
                if is_reached():
                    return time.perf_counter()


class _Chat(Painted, ChatApp):
    """The chat, timed."""


class _Browse(Painted, BrowseApp):
    """The inspector, timed."""


class Streaming:
    """An agent that says the same prose again and again, so many tokens a second."""

    session_id = "bench"

    def __init__(self, tokens_per_s: float) -> None:
        self._pause_s = 1 / tokens_per_s
        self.is_stopped = False

    def what_if(self, exchange_id: str, *, without: Collection[str]) -> AsyncIterator[Event]:
        return self.stream(exchange_id, exclude=without)

    async def stream(
        self, text: str, *, incognito: bool = False, exclude: Collection[str] = ()
    ) -> AsyncIterator[Event]:
        said: list[str] = []
        due = time.perf_counter()
        for piece in itertools.cycle(_PROSE.split(" ")):
            if self.is_stopped:
                break
            due += self._pause_s
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            said.append(f"{piece} ")
            yield TokenDelta(text=said[-1])
        yield Reply(
            text="".join(said),
            memories=(),
            exchange_id="bench",
            session_id=self.session_id,
            status="complete",
            stop_reason="eos",
            usage=_usage(len(said)),
        )


def _usage(decoded: int) -> Usage:
    return Usage(
        prefill_tokens=0,
        paged_tokens=0,
        decoded_tokens=decoded,
        route_ms=0.0,
        page_ms=0.0,
        prefill_ms=0.0,
        first_token_ms=0.0,
        decode_ms=0.0,
    )


def fill(path: Path, memories: int, keys: "KeyProvider | None" = None) -> None:
    """A bank of so many memories in the namespace of the benchmarks, over two years."""
    start = datetime.now(UTC) - timedelta(days=_DAYS)
    texts = make_texts(memories, words=_WORDS)
    with MemoryBank.open(path, keys=keys) as bank:
        for first in range(0, memories, _GROUP):
            group = range(first, min(first + _GROUP, memories))
            drafts = [
                MemoryDraft(next(texts), created_at=start + timedelta(days=_DAYS * at / memories))
                for at in group
            ]
            bank.store.add(NAMESPACE, drafts)


def opener(path: Path, keys: "KeyProvider | None" = None, *, read_only: bool = True) -> Opener:
    always = read_only

    def opened(ask: Ask, tell: Tell, *, read_only: bool = False) -> AbstractContextManager[MemoryBank]:
        return MemoryBank.open(path, keys=keys, read_only=always or read_only)

    return opened


def p95(values: Sequence[float]) -> float:
    return sorted(values)[max(int(len(values) * 0.95 + 0.5) - 1, 0)]


def _ms(values: Sequence[float], pick: Callable[[Sequence[float]], float] = p95) -> float:
    return round(1000 * pick(values), 1)


def _drive(app: MemoryApp, script: Callable[[Pilot[Any]], Any], size: tuple[int, int]) -> dict[str, Any]:
    async def run() -> dict[str, Any]:
        async with app.run_test(size=size) as pilot:
            found: dict[str, Any] = await script(pilot)
            await app.stop_turn()
            return found

    try:
        return asyncio.run(run())
    finally:
        app.is_closing = True
        app.stack.close()


def typing(path: Path, keys: "KeyProvider | None", *, strokes: int, tokens_per_s: float) -> dict[str, Any]:
    """Milliseconds from a key to its letter on the screen, while a reply comes in."""
    talker = Streaming(tokens_per_s)
    app = _Chat(
        opener(path, keys, read_only=False),
        lambda *_: Loaded("bench", lambda _name, _session: talker),
        NAMESPACE,
    )

    async def script(pilot: Pilot[Any]) -> dict[str, Any]:
        while app.loaded is None:
            await pilot.pause(0.02)
        area = app.prompt.area
        area.text = "Tell me all about Clara."
        await pilot.press("enter")
        while not app.turns.is_running:
            await pilot.pause(0.02)
        await asyncio.sleep(1.0)
        took: list[float] = []
        for at, letter in zip(range(strokes), itertools.cycle("what else is there "), strict=False):
            await asyncio.sleep(_WAIT_S + 0.007 * (at % 5))  # at any point between two tokens
            wanted, started = area.text + letter, time.perf_counter()
            app.post_message(events.Key("space" if letter == " " else letter, letter))
            took.append(await app.until(lambda: area.text == wanted) - started)  # noqa: B023
        talker.is_stopped = True
        return {
            "keystroke_ms_p95": _ms(took),
            "keystroke_ms_p50": _ms(took, statistics.median),
            "strokes": strokes,
            "tokens_per_s": tokens_per_s,
        }

    return _drive(app, script, (100, 30))


class _Empty(Painted, App[None]):
    """The least that Textual makes of a prompt: the measure for `typing`, with nothing that streams."""

    def compose(self) -> ComposeResult:
        yield TextArea()


def typing_in_empty(*, strokes: int) -> dict[str, Any]:
    """The same as `typing`, in an app that is a prompt and nothing else."""

    async def run() -> list[float]:
        app = _Empty()
        async with app.run_test(size=(100, 30)) as pilot:
            area = app.query_one(TextArea)
            await pilot.pause(0.2)
            took: list[float] = []
            for at in range(strokes):
                await asyncio.sleep(_WAIT_S + 0.007 * (at % 5))
                wanted, started = area.text + "x", time.perf_counter()
                app.post_message(events.Key("x", "x"))
                took.append(await app.until(lambda: area.text == wanted) - started)  # noqa: B023
            return took

    took = asyncio.run(run())
    return {
        "empty_keystroke_ms_p95": _ms(took),
        "empty_keystroke_ms_p50": _ms(took, statistics.median),
    }


def inspecting(path: Path, keys: "KeyProvider | None", namespace: str, *, pages: int) -> dict[str, Any]:
    """First paint, scrolling and filtering of the inspector over a bank."""
    app = _Browse(opener(path, keys), namespace)

    def has_rows() -> bool:
        screen = app.screen
        if not isinstance(screen, Inspector) or not screen.is_mounted:
            return False
        table = screen.table
        top = table.scroll_offset.y
        rows = range(top, min(top + table.size.height - 1, table.count))
        return bool(rows) and all(table.row(index) is not None for index in rows)

    async def script(pilot: Pilot[Any]) -> dict[str, Any]:
        await app.until(has_rows)
        first: list[float] = []
        for _ in range(3):
            app.pop_screen()
            await pilot.pause(0.3)
            started = time.perf_counter()
            app.push_screen(Inspector())
            first.append(await app.until(has_rows) - started)
        screen = app.screen
        assert isinstance(screen, Inspector)
        while screen._survey is None or not screen._survey.is_complete or not screen.table.count:
            await pilot.pause(0.05)
        scrolled: list[float] = []
        for at in range(pages):
            key = "end" if at == pages // 2 else "pageup" if at > pages // 2 else "pagedown"
            before, started = screen.table.cursor, time.perf_counter()
            app.post_message(events.Key(key, None))
            scrolled.append(
                await app.until(lambda: screen.table.cursor != before and has_rows()) - started  # noqa: B023
            )
            await asyncio.sleep(_WAIT_S)
        return {
            "memories": screen.table.count,
            "first_paint_ms": _ms(first, statistics.median),
            "scroll_ms_p95": _ms(scrolled),
            "pages": pages,
            **await _filter(pilot, screen),
        }

    async def _filter(pilot: Pilot[Any], screen: Inspector) -> dict[str, Any]:
        words = [memory.text.split()[0] for memory in screen.bank.list(namespace, limit=2) if memory.text]
        field = screen.query_one("#filter")
        echoes: list[float] = []
        answers: list[float] = []
        whole: list[float] = []
        for word in words:
            screen.action_filter()
            await pilot.pause(0.2)
            for letter in word:
                wanted, started = field.value + letter, time.perf_counter()  # type: ignore[attr-defined]
                former = screen._listing
                app.post_message(events.Key(letter, letter))
                echoes.append(await app.until(lambda: field.value == wanted) - started)  # type: ignore[attr-defined]  # noqa: B023
                if screen._listing is former:
                    await app.until(lambda: screen._listing is not former and has_rows())  # noqa: B023
                answers.append(time.perf_counter() - started)
                await asyncio.sleep(_WAIT_S)
            while screen._listing is None or not screen._listing.is_complete:
                await pilot.pause(0.02)
            whole.append(time.perf_counter() - started)
            field.value = ""  # type: ignore[attr-defined]
            while screen._listing is None or not screen._listing.is_quick:
                await pilot.pause(0.02)
        return {
            "filter_ms_p95": _ms(answers),
            "filter_ms_p50": _ms(answers, statistics.median),
            "filter_key_ms_p95": _ms(echoes),
            "filter_whole_s": round(max(whole), 2),
        }

    return _drive(app, script, (160, 50))


def run(memories: int, bank: Path | None, namespace: str, *, quick: bool, model: str) -> dict[str, Any]:
    """All figures. `bank` is read and not changed; without one, one of `memories` is made and removed."""
    from tempfile import TemporaryDirectory

    from mnemos.store.keys import KeyFile
    from mnemos.tui.bench_start import starting

    with TemporaryDirectory(prefix="mnemos-bench-") as folder:
        place = Path(folder)
        small, keys = place / "small", KeyFile(place / "bank.key")
        fill(small, 200, keys)
        found = typing(small, keys, strokes=20 if quick else 200, tokens_per_s=50)
        found |= typing_in_empty(strokes=20 if quick else 200)
        if bank is None:
            fill(place / "large", memories, keys)
            large = (place / "large", keys, NAMESPACE)
        else:
            large = (bank, None, namespace)  # type: ignore[assignment]
        found |= inspecting(*large, pages=20 if quick else 100)
        found |= starting(place / "fresh", runs=1 if quick else 5, idle_s=2 if quick else 10, model=model)
    return {**found, "cpus": os.cpu_count()}
