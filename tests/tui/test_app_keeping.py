"""What the chat keeps and what not: incognito turns, deleted sessions, namespaces."""

from pathlib import Path
from typing import Any

import pytest
from tests.tui.driving import answered, drive, say, screen_text, until
from tests.tui.scripted import loader_with, opener_at
from textual.pilot import Pilot

from mnemos import MemoryBank
from mnemos.tui.app.app import ChatApp
from mnemos.tui.app.choices import NamespaceDialog, Question
from mnemos.tui.app.forget_dialog import ForgetDialog

FACT = "My sister Clara works as a nurse in Leeds."


@pytest.fixture
def place(tmp_path: Path) -> Path:
    with MemoryBank.open(tmp_path / "bank") as bank:
        bank.remember(FACT)
    return tmp_path / "bank"


def chat(place: Path, *replies: str, **settings: Any) -> ChatApp:
    return ChatApp(opener_at(place), loader_with(*(replies or ("Fine.",)), **settings), "default")


def test_incognito_is_seen_and_leaves_nothing(place: Path) -> None:
    app = chat(place, "Clara is a nurse.")

    async def script(pilot: Pilot[Any]) -> None:
        await say(pilot, "/incognito")
        await until(pilot, lambda: app.incognito and "/incognito ends it" in screen_text(app))
        assert " incognito " in screen_text(app).splitlines()[-5:][0] or "incognito" in screen_text(app)
        await say(pilot, "what of Clara")
        await answered(pilot, app, 1)
        assert "1 memory" in screen_text(app) and "incognito, not stored" in screen_text(app)
        assert app.bank.count() == 1 and app.bank.sessions() == [] and app.session_id is None
        await pilot.press("f2")
        await until(pilot, lambda: app.panel.current is not None)
        assert FACT[:20] in screen_text(app)
        await pilot.press("escape")
        await say(pilot, "/incognito")
        await until(pilot, lambda: "Nothing of 1 message was stored" in screen_text(app))
        assert app.prompt.history == []
        await say(pilot, "and now")
        await answered(pilot, app, 2)
        assert [memory.text for memory in app.bank.list(limit=1)] == ["and now"]

    drive(app, script)


def test_an_incognito_reply_goes_with_the_memory_it_was_made_from(place: Path) -> None:
    app = chat(place, "Clara is a nurse.")

    async def script(pilot: Pilot[Any]) -> None:
        await say(pilot, "/incognito")
        await say(pilot, "what of Clara")
        await answered(pilot, app, 1)
        await pilot.press("f2")
        await until(pilot, lambda: app.panel.current is not None)
        await pilot.press("f")
        await until(pilot, lambda: isinstance(app.screen, ForgetDialog))
        await pilot.press("right", "enter")
        await until(pilot, lambda: "✓ receipt" in screen_text(app))
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, ForgetDialog))
        assert "nurse" not in screen_text(app)

    drive(app, script)


def test_a_session_is_deleted_alone_or_with_its_memories(place: Path) -> None:
    app = chat(place)

    async def script(pilot: Pilot[Any]) -> None:
        for text in ("about the boat", "about the cellar"):
            await say(pilot, text)
            await answered(pilot, app, 1)
            await pilot.press("ctrl+n")
            await until(pilot, lambda: app.session_id is None and not app.conversation.answers)
        await pilot.press("ctrl+b")
        await until(pilot, lambda: app.sidebar.display and len(app.sidebar.sessions) == 2)
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, Question))
        assert app.focused is app.screen.query_one("#no"), "Enter by mistake deletes nothing"
        assert "about the cellar" in screen_text(app) and "1 memory was made" in screen_text(app)
        await pilot.press("enter")
        await until(pilot, lambda: not isinstance(app.screen, Question))
        assert len(app.bank.sessions()) == 2
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, Question))
        await pilot.press("right", "enter")
        await until(pilot, lambda: len(app.sidebar.sessions) == 1)
        assert app.bank.list(matching="cellar"), "without its memories: they are recalled as before"
        await pilot.press("d")
        await until(pilot, lambda: isinstance(app.screen, Question))
        await pilot.press("right", "right", "enter")
        await until(pilot, lambda: isinstance(app.screen, ForgetDialog))
        await pilot.press("right", "enter")
        await until(pilot, lambda: "✓ receipt" in screen_text(app))
        await pilot.press("escape")
        await until(pilot, lambda: not app.sidebar.sessions)
        assert not app.bank.list(matching="boat") and app.bank.list(matching="Clara")

    drive(app, script)


def test_namespaces_are_switched_without_a_restart(place: Path) -> None:
    with MemoryBank.open(place) as bank:
        bank.remember("The cellar door sticks.", namespace="work")
    app = chat(place)

    async def script(pilot: Pilot[Any]) -> None:
        await say(pilot, "who is Clara")
        await answered(pilot, app, 1)
        await say(pilot, "/namespace")
        await until(pilot, lambda: isinstance(app.screen, NamespaceDialog))
        assert "work" in screen_text(app) and "1 memory" in screen_text(app)
        await pilot.press("down", "enter")
        await until(pilot, lambda: app.namespace == "work" and not app.conversation.answers)
        await say(pilot, "what of the cellar and Clara")
        await answered(pilot, app, 1)
        (recalled,) = app.conversation.answers[0].memories
        assert recalled.memory.text == "The cellar door sticks."
        assert app.bank.count("work") == 2 and app.bank.count("default") == 2
        await say(pilot, "/namespace no good")
        await until(pilot, lambda: app.prompt.text == "/namespace no good")
        assert app.namespace == "work"
        app.prompt.write("")
        await say(pilot, "/namespace fresh")
        await until(pilot, lambda: app.namespace == "fresh")
        assert "fresh" in screen_text(app).splitlines()[0]

    drive(app, script)
