"""The inspector over a real bank: pages, filter, marks, provenance, forgetting."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.tui.driving import drive, screen_text, until
from tests.tui.scripted import opener_at
from textual.pilot import Pilot
from textual.widgets import Input, Static

from mnemos import MemoryBank
from mnemos.memory.records import RecalledMemory
from mnemos.store.records import MemoryDraft
from mnemos.tui.app.browse import BrowseApp
from mnemos.tui.app.detail import Detail
from mnemos.tui.app.forget_dialog import ForgetDialog
from mnemos.tui.app.inspector import Inspector
from mnemos.tui.app.overview import Overview
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


def test_only_the_pages_in_view_and_the_next_are_read(place: Path) -> None:
    app = BrowseApp(opener_at(place), "default")

    async def script(pilot: Pilot[Any]) -> None:
        table = (await opened(pilot, app)).table
        assert f"note number {COUNT - 1}" in screen_text(app) and "300 memories" in screen_text(app)
        await pilot.press("end")
        await until(pilot, lambda: "note number 0" in screen_text(app))
        assert set(table._pages) <= {0, 1, (COUNT - 1) // PAGE - 1, (COUNT - 1) // PAGE}
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

        def said() -> str:
            return "\n".join(str(part.content) for part in detail.query(Static))

        await until(pilot, lambda: "Reply made from" in said())
        assert inspector.table._pages[0].tiers == {}  # no model read them
        assert "tiers" in str(inspector.query_one(Overview).content)
        assert "score 2.50  attention 75%" in said() and "mass 1.50" in said()
        assert inspector.table.cursor == 0
        await pilot.press("enter", "tab", "enter")
        await until(pilot, lambda: "Used in 1 reply to" in said() and inspector.table.cursor == 1)
        assert "What is Clara?" in said() and "Clara is a nurse." in said()
        assert detail.has_focus
        await pilot.press("b")
        await until(pilot, lambda: "Reply made from" in said() and inspector.table.cursor == 0)

    drive(app, script)


def test_tags_are_given_to_all_that_are_marked(place: Path) -> None:
    app = BrowseApp(opener_at(place), "default")

    async def script(pilot: Pilot[Any]) -> None:
        await opened(pilot, app)
        await pilot.press("space", "space", "t")
        await until(pilot, lambda: len(app.screen_stack) == 3)
        assert "some of them have are kept" in screen_text(app)
        await pilot.press(*"work,home", "enter")
        expected = [("work", "home"), ("even", "work", "home"), ()]
        await until(pilot, lambda: [m.tags for m in app.bank.list(limit=3)] == expected)

        await pilot.press("t")
        await until(pilot, lambda: len(app.screen_stack) == 3)
        await pilot.press("end", *["backspace"] * len(", home"), "enter")
        expected = [("work",), ("even", "work"), ()]
        await until(pilot, lambda: [m.tags for m in app.bank.list(limit=3)] == expected)

    drive(app, script)


def test_marked_memories_are_exported_for_the_owner_alone(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = BrowseApp(opener_at(place), "default")
    target = tmp_path / "some.mnemos"
    said: list[str] = []
    monkeypatch.setattr(app, "notify", lambda text, **_: said.append(text))

    async def script(pilot: Pilot[Any]) -> None:
        await opened(pilot, app)
        await pilot.press("h", "space", "space", "e")
        await until(pilot, lambda: len(app.screen_stack) == 3)
        app.screen.query_one(Input).value = str(target)
        await pilot.press("enter")
        await until(pilot, lambda: said == [f"2 exported to {target}"])
        await pilot.press("e")
        await until(pilot, lambda: len(app.screen_stack) == 3)
        app.screen.query_one(Input).value = str(target)
        await pilot.press("enter")
        await until(pilot, lambda: "exists already" in said[-1])

    drive(app, script)
    assert target.stat().st_mode & 0o777 == 0o600
    with MemoryBank.open(tmp_path / "other") as other:
        assert other.import_(target).added == 2
        kept = {memory.text for memory in other.list(include_hidden=True)}
    assert kept == {f"note number {COUNT - 1}", f"note number {COUNT - 2}"}


def test_the_table_is_sorted_and_shows_uses(place: Path) -> None:
    with MemoryBank.open(place) as bank:
        often = bank.list(matching="note number 42")[0]
        long = bank.remember("long " * 400)
        exchange = bank.begin_exchange("What is 42?", namespace="default", session_id=None)
        bank.complete_exchange(
            exchange, "A note.", recalled=[RecalledMemory(memory=often, rank=1, score=1.0)]
        )
    app = BrowseApp(opener_at(place), "default")

    async def script(pilot: Pilot[Any]) -> None:
        table = (await opened(pilot, app, COUNT + 2)).table
        await pilot.press("s")
        await until(pilot, lambda: table.current and table.current.id == long.id)
        assert "largest first" in screen_text(app)
        await pilot.press("s")
        await until(pilot, lambda: table.current and table.current.id == often.id)
        row = next(line for line in screen_text(app).splitlines() if line.split()[:1] == [often.id[:8]])
        assert " 1 " in row, "uses"
        await pilot.press("s")
        await until(pilot, lambda: table.current and table.current.id == exchange.id)

    drive(app, script, (160, 40))


def test_the_timeline_chooses_days(tmp_path: Path) -> None:
    start = datetime(2026, 3, 1, 12, tzinfo=UTC)
    with MemoryBank.open(tmp_path / "bank") as bank:
        bank.remember_many(
            [MemoryDraft(f"day {day}", created_at=start + timedelta(days=day)) for day in (0, 0, 1, 5)]
        )
        bank.remember_many([MemoryDraft("of a file", kind="document", created_at=start + timedelta(days=9))])
    app = BrowseApp(opener_at(tmp_path / "bank"), "default")

    async def script(pilot: Pilot[Any]) -> None:
        table = (await opened(pilot, app, 5)).table
        await until(pilot, lambda: "2026-03-01 to 2026-03-10" in screen_text(app))
        assert "█▄   ▄   ▄" in screen_text(app)
        assert "document 1" in screen_text(app) and "pending 5" in screen_text(app), "the map"
        await pilot.press("d", "left")
        await until(pilot, lambda: table.count == 1 and "of a file" in screen_text(app))
        await pilot.press("left", "left", "left")
        await until(pilot, lambda: table.count == 2 and "2026-03-01  2" in screen_text(app))
        assert [memory.text for memory in table._pages[0].rows if memory] == ["day 0", "day 0"]
        await pilot.press("enter")
        assert table.has_focus
        await pilot.press("slash", *"day 1", "enter")
        await until(pilot, lambda: table.count == 0)
        await pilot.press("escape")
        await until(pilot, lambda: table.count == 1)
        await pilot.press("escape")
        await until(pilot, lambda: table.count == 5)

    drive(app, script, (100, 40))


@pytest.mark.parametrize("size", [(60, 20), (100, 30), (160, 50)])
def test_it_fits_the_screen(place: Path, size: tuple[int, int]) -> None:
    app = BrowseApp(opener_at(place), "default")

    async def script(pilot: Pilot[Any]) -> None:
        await opened(pilot, app)
        await until(pilot, lambda: "text" in screen_text(app).splitlines()[-2])
        lines = screen_text(app).splitlines()
        assert len(lines) == size[1] and all(len(line) <= size[0] for line in lines)
        assert any("note number 299" in line for line in lines) and "days" in lines[1]

    drive(app, script, size)
