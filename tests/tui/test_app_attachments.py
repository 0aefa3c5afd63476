"""Files and large pastes beside the prompt."""

from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tui.driving import answered, drive, say, screen_text, until
from tests.tui.scripted import loader_with, opener_at
from textual import events
from textual.pilot import Pilot

from mnemos.errors import MnemosError
from mnemos.tui.app.app import ChatApp
from mnemos.tui.app.attachments import MAX_BYTES, Chip, matching_paths, read_file, reference_at
from mnemos.tui.app.conversation import Said


def chat(tmp_path: Path) -> ChatApp:
    return ChatApp(opener_at(tmp_path / "bank"), loader_with("Fine."), "default")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    here = tmp_path / "here"
    (here / "notes").mkdir(parents=True)
    (here / "notes" / "garden.md").write_text("# Garden\n\nThe pear tree is old.\n")
    (here / "photo.bin").write_bytes(b"\x89PNG\x00\xff")
    (here / "large.txt").write_text("word " * MAX_BYTES)
    (here / ".hidden").write_text("x")
    monkeypatch.chdir(here)
    return here


def test_a_file_is_attached_by_its_path(tmp_path: Path, folder: Path) -> None:
    app = chat(tmp_path)

    async def script(pilot: Pilot[Any]) -> None:
        await pilot.press("s", "e", "e", "space", "@")
        await until(pilot, lambda: app.prompt.completions.display)
        assert "notes/" in screen_text(app) and ".hidden" not in screen_text(app)
        await pilot.press("n", "tab")
        assert app.prompt.text == "see @notes/"
        await until(pilot, lambda: "garden.md" in screen_text(app))
        await pilot.press("enter")
        await until(pilot, lambda: app.prompt.attachments)
        assert app.prompt.text == "see " and "garden.md, 4 lines" in screen_text(app)
        await pilot.press("enter")
        await answered(pilot, app, 1)
        assert app.bank.list(limit=1)[0].text == "see \n\n[garden.md]\n# Garden\n\nThe pear tree is old.\n"

    drive(app, script)


def test_what_is_no_text_or_too_large_is_not_attached(tmp_path: Path, folder: Path) -> None:
    app = chat(tmp_path)

    async def script(pilot: Pilot[Any]) -> None:
        await pilot.press("@", "p", "tab")
        await until(pilot, lambda: "is no text" in screen_text(app))
        assert app.prompt.text == "@p" and not app.prompt.attachments
        app.prompt.write("@l")
        await until(pilot, lambda: app.prompt.completions.display)
        await pilot.press("tab")
        await until(pilot, lambda: "/ingest large.txt" in screen_text(app))
        app.prompt.write("")
        await say(pilot, "/ingest notes")
        await until(pilot, lambda: app.bank.list(matching="pear tree"))
        await until(pilot, lambda: "1 memory added" in screen_text(app))

    drive(app, script)


@pytest.mark.parametrize("named", ["nowhere.txt", "notes", "photo.bin", "large.txt", "\0"])
def test_every_refusal_has_words(folder: Path, named: str) -> None:
    with pytest.raises(MnemosError):
        read_file(named)


def test_chips_are_taken_away_and_expanded(tmp_path: Path) -> None:
    app = chat(tmp_path)

    async def script(pilot: Pilot[Any]) -> None:
        await pilot.press("a")
        for text in ("one\n" * 40, "two\n" * 30):
            app.prompt.area.post_message(events.Paste(text))
        await until(pilot, lambda: len(app.prompt.query(Chip)) == 2)
        await pilot.press("shift+tab")
        assert isinstance(app.focused, Chip)
        await pilot.press("left", "x")
        await until(pilot, lambda: len(app.prompt.query(Chip)) == 1)
        assert [each.text[:3] for each in app.prompt.attachments] == ["two"]
        await pilot.press("shift+tab", "enter")
        assert app.prompt.text == "a" + "two\n" * 30 and not app.prompt.attachments

    drive(app, script)


def test_a_paste_of_five_megabytes_does_not_hold_the_app_up(tmp_path: Path) -> None:
    app = chat(tmp_path)
    text = "paste of words\n" * 350_000

    async def script(pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: app.loaded)
        started = perf_counter()
        app.prompt.area.post_message(events.Paste(text))
        await until(pilot, lambda: app.prompt.attachments)
        await pilot.press("h", "i")
        assert perf_counter() - started < 20
        await pilot.press("enter")
        await until(pilot, lambda: not app.turns.is_running and app.prompt.attachments)
        assert perf_counter() - started < 40
        assert app.prompt.attachments[0].text.startswith("hi\n\npaste"), "it comes back as it was"
        assert not app.conversation.query(Said)

    drive(app, script)


def test_a_long_message_shows_its_start(tmp_path: Path) -> None:
    app = chat(tmp_path)

    async def script(pilot: Pilot[Any]) -> None:
        app.prompt.area.post_message(events.Paste("\n".join(f"line {at}" for at in range(60))))
        await until(pilot, lambda: app.prompt.attachments)
        await pilot.press("enter")
        await answered(pilot, app, 1)
        shown = screen_text(app)
        assert "line 10" in shown and "line 59" not in shown and "Enter shows them" in shown
        await pilot.press("ctrl+up", "up", "enter")
        await until(pilot, lambda: "line 59" in screen_text(app))

    drive(app, script, (100, 90))


@given(st.text(max_size=40), st.integers(0, 40))
def test_a_reference_is_what_stands_behind_an_at_sign(text: str, column: int) -> None:
    found = reference_at(text, column)
    if found is not None:
        before = text[:column]
        assert before.endswith(f"@{found}")
        start = len(before) - len(found) - 1
        assert start == 0 or before[start - 1].isspace()


@given(st.text(max_size=60))
def test_any_text_can_be_completed(written: str) -> None:
    assert len(list(matching_paths(written))) <= 50
