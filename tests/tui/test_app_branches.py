"""Replies made again, messages edited, branches: nothing that was said is lost."""

from pathlib import Path
from typing import Any

import pytest
from tests.tui.driving import answered, drive, say, screen_text, until
from tests.tui.scripted import loader_with, opener_at
from textual.pilot import Pilot

from mnemos import MemoryBank
from mnemos.tui.app.app import ChatApp
from mnemos.tui.app.conversation import Said

FACT = "My sister Clara works as a nurse in Leeds."


@pytest.fixture
def place(tmp_path: Path) -> Path:
    with MemoryBank.open(tmp_path / "bank") as bank:
        bank.remember(FACT)
    return tmp_path / "bank"


def chat(place: Path, *replies: str, **settings: Any) -> ChatApp:
    return ChatApp(opener_at(place), loader_with(*(replies or ("Fine.",)), **settings), "default")


def said(app: ChatApp) -> list[str]:
    return [each.words for each in app.conversation.query(Said)]


def test_a_reply_is_made_again_in_a_branch_and_both_are_a_key_apart(place: Path) -> None:
    app = chat(place, "first answer", "second answer")

    async def script(pilot: Pilot[Any]) -> None:
        await say(pilot, "hello there")
        await answered(pilot, app, 1)
        await say(pilot, "who is Clara")
        await answered(pilot, app, 2)
        first = app.session_id
        replaced = app.conversation.answers[-1].exchange_id
        await pilot.press("ctrl+r")
        await until(pilot, lambda: app.session_id != first)
        await answered(pilot, app, 2)
        assert said(app) == ["hello there", "who is Clara"]
        again = app.conversation.answers[-1]
        assert replaced not in {each.memory.id for each in again.memories}, "it does not answer from itself"
        await until(pilot, lambda: "◂ 2 of 2 ▸" in screen_text(app))
        assert first is not None and app.session_id is not None
        assert app.bank.get_session(app.session_id).parent_id == first
        assert app.bank.get_session(first).turns == 2, "the earlier way is there as it was"
        await pilot.press("ctrl+up", "left")
        await until(pilot, lambda: app.session_id == first)
        await until(pilot, lambda: "◂ 1 of 2 ▸" in screen_text(app))
        assert app.conversation.answers[-1].exchange_id == replaced

    drive(app, script)


def test_the_first_message_is_edited_and_sent_in_a_branch(place: Path) -> None:
    app = chat(place, "one", "two", "three")

    async def script(pilot: Pilot[Any]) -> None:
        await say(pilot, "about the boat")
        await answered(pilot, app, 1)
        await say(pilot, "and its sail")
        await answered(pilot, app, 2)
        first = app.session_id
        await pilot.press("ctrl+up", "home", "e")
        assert app.prompt.text == "about the boat" and "Editing an earlier message" in screen_text(app)
        await pilot.press("escape")
        assert app.prompt.text == "" and "Editing" not in screen_text(app) and app.session_id == first
        await pilot.press("ctrl+up", "home", "e")
        app.prompt.write("about the ship")
        await pilot.press("enter")
        await until(pilot, lambda: app.session_id != first)
        await answered(pilot, app, 1)
        assert said(app) == ["about the ship"]
        await pilot.press("ctrl+b")
        await until(pilot, lambda: app.sidebar.display)
        assert [(line.title, line.depth) for line in app.sidebar.sessions] == [
            ("about the boat", 0),
            ("about the ship", 1),
        ]
        assert "└ about the ship" in screen_text(app)

    drive(app, script)


def test_a_branch_goes_on_from_any_message(place: Path) -> None:
    app = chat(place)

    async def script(pilot: Pilot[Any]) -> None:
        await say(pilot, "/branch")
        await until(pilot, lambda: "nothing to branch from" in screen_text(app))
        app.prompt.write("")
        await say(pilot, "one")
        await answered(pilot, app, 1)
        await say(pilot, "two")
        await answered(pilot, app, 2)
        first = app.session_id
        await pilot.press("ctrl+up", "home", "n")
        await until(pilot, lambda: app.session_id != first and said(app) == ["one"])
        await say(pilot, "three")
        await answered(pilot, app, 2)
        branch = app.session_id
        assert branch is not None and first is not None
        assert [memory.text for memory in app.bank.history(branch)] == ["one", "three"]
        assert [memory.text for memory in app.bank.history(first)] == ["one", "two"]

    drive(app, script)


def test_there_is_nothing_to_make_again_at_the_start(place: Path) -> None:
    app = chat(place)

    async def script(pilot: Pilot[Any]) -> None:
        await say(pilot, "/regenerate")
        await until(pilot, lambda: "no reply to make again" in screen_text(app))

    drive(app, script)
