"""The inspector over a real bank: pages, filter, marks, provenance, forgetting."""

from pathlib import Path
from typing import Any

import pytest
from tests.tui.driving import drive, screen_text, until
from tests.tui.scripted import opener_at
from textual.pilot import Pilot

from mnemos import MemoryBank
from mnemos.memory.records import RecalledMemory
from mnemos.store.records import MemoryDraft
from mnemos.tui.app.browse import BrowseApp
from mnemos.tui.app.detail import Detail
from mnemos.tui.app.forget_dialog import ForgetDialog
from mnemos.tui.app.inspector import Inspector
from mnemos.tui.app.table import PAGE

COUNT = 300


@pytest.fixture
def place(tmp_path: Path) -> Path:
    with MemoryBank.open(tmp_path / "bank") as bank:
        drafts = [
            MemoryDraft(f"note number {at}", tags=("even",) if at % 2 == 0 else ()) for at in range(COUNT)
        ]
        bank.remember_many(drafts)
    return tmp_path / "bank"


def inspector_of(app: BrowseApp) -> Inspector:
    assert isinstance(app.screen, Inspector)
    return app.screen


async def opened(pilot: Pilot[Any], app: BrowseApp, count: int = COUNT) -> Inspector:
    await until(pilot, lambda: isinstance(app.screen, Inspector) and app.screen.table.count == count)
    return inspector_of(app)


def test_only_the_pages_in_view_are_read(place: Path) -> None:
    app = BrowseApp(opener_at(place), "default")

    async def script(pilot: Pilot[Any]) -> None:
        table = (await opened(pilot, app)).table
        assert f"note number {COUNT - 1}" in screen_text(app) and "300 memories" in screen_text(app)
        await pilot.press("end")
        await until(pilot, lambda: "note number 0" in screen_text(app))
        assert set(table._pages) <= {0, (COUNT - 1) // PAGE - 1, (COUNT - 1) // PAGE}
        await pilot.press("home", "down", "down")
        assert table.cursor == 2 and table.scroll_offset.y == 0
        await pilot.press("pagedown")
        assert table.cursor > 2

    drive(app, script)


def test_the_filter_takes_words_and_selectors(place: Path) -> None:
    app = BrowseApp(opener_at(place), "default")

    async def script(pilot: Pilot[Any]) -> None:
        inspector = await opened(pilot, app)
        await pilot.press("slash", "2", "9", "9")
        await until(pilot, lambda: inspector.table.count == 1)
        assert "note number 299" in screen_text(app) and "contain the text" in screen_text(app)
        field = inspector.query_one("#filter")
        field.value = "tag:even"  # type: ignore[attr-defined]
        await until(pilot, lambda: inspector.table.count == COUNT // 2)
        assert "fit the selector" in screen_text(app)
        await pilot.press("escape")
        assert inspector.table.has_focus
        await pilot.press("escape")
        await until(pilot, lambda: inspector.table.count == COUNT)

    drive(app, script)


def test_marked_memories_are_pinned_hidden_and_forgotten(place: Path) -> None:
    app = BrowseApp(opener_at(place), "default")

    async def script(pilot: Pilot[Any]) -> None:
        inspector = await opened(pilot, app)
        await pilot.press("space", "space")
        await until(pilot, lambda: "2 marked" in screen_text(app))
        await pilot.press("p")
        await until(pilot, lambda: [m.pinned for m in app.bank.list(limit=3)] == [True, True, False])
        await pilot.press("h")
        await until(pilot, lambda: app.bank.count() == COUNT - 2)
        assert "hidden" in screen_text(app), "hidden memories stay in the inspector"
        await pilot.press("h")
        await until(pilot, lambda: app.bank.count() == COUNT)
        await pilot.press("f")
        await until(pilot, lambda: isinstance(app.screen, ForgetDialog))
        assert "2 memories" in screen_text(app)
        await pilot.press("right", "enter")
        await until(pilot, lambda: "Forgotten for good" in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: inspector.table.count == COUNT - 2)
        assert not inspector.table.marked
        assert app.bank.list(limit=1)[0].text == f"note number {COUNT - 3}"

    drive(app, script, (120, 40))


def test_an_expiry_is_set_and_a_wrong_one_is_told(place: Path) -> None:
    app = BrowseApp(opener_at(place), "default")

    async def script(pilot: Pilot[Any]) -> None:
        await opened(pilot, app)
        for typed in ("soon", "30d", ""):
            await pilot.press("x")
            await until(pilot, lambda: len(app.screen_stack) == 3)
            await pilot.press(*typed, "enter")
            await until(pilot, lambda: len(app.screen_stack) == 2)
            expected = typed == "30d"

            def is_set(expected: bool = expected) -> bool:
                return (app.bank.list(limit=1)[0].expires_at is not None) == expected

            await until(pilot, is_set)

    drive(app, script)


def test_the_detail_shows_provenance_both_ways(tmp_path: Path) -> None:
    with MemoryBank.open(tmp_path / "bank") as bank:
        fact = bank.remember("Clara is a nurse.")
        exchange = bank.begin_exchange("What is Clara?", namespace="default", session_id=None)
        used = RecalledMemory(memory=fact, rank=1, score=2.5, signals={"mass": 1.5}, attention=0.75)
        bank.complete_exchange(exchange, "A nurse.", recalled=[used])
    app = BrowseApp(opener_at(tmp_path / "bank"), "default")

    async def script(pilot: Pilot[Any]) -> None:
        inspector = await opened(pilot, app, 2)
        detail = inspector.query_one(Detail)
        await until(pilot, lambda: "Reply made from" in str(detail.content))
        assert "score 2.50 75%" in str(detail.content) and "mass 1.50" in str(detail.content)
        await pilot.press("down")
        await until(pilot, lambda: "Used in replies to" in str(detail.content))
        assert "What is Clara?" in str(detail.content)

    drive(app, script)
