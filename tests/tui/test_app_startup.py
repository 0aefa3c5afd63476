"""What the app can do without at its start, and a bank that can't be written."""

import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from tests.tui.driving import answered, drive, say, screen_text, until
from tests.tui.scripted import loader_with
from textual.pilot import Pilot

from mnemos import MemoryBank
from mnemos.errors import BankLockedError
from mnemos.tui.app.app import ChatApp
from mnemos.tui.app.choices import Question
from mnemos.tui.app.engine import Ask, Tell

FACT = "My sister Clara works as a nurse in Leeds."


def test_the_prompt_does_not_wait_for_what_is_slow_to_import() -> None:
    code = (
        "import sys, mnemos.tui.app.app\n"
        "print(*({'torch', 'pydantic', 'sqlalchemy', 'numpy', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == ""


def locked(path: Path) -> Any:
    """An opener of a bank that another process writes to."""

    def opened(ask: Ask, tell: Tell, *, read_only: bool = False) -> AbstractContextManager[MemoryBank]:
        if not read_only:
            raise BankLockedError("the bank is being written by another process (process 7)")
        return MemoryBank.open(path, read_only=True)

    return opened


@pytest.fixture
def place(tmp_path: Path) -> Path:
    with MemoryBank.open(tmp_path / "bank") as bank:
        bank.remember(FACT)
    return tmp_path / "bank"


def test_a_bank_that_is_locked_can_be_read(place: Path) -> None:
    app = ChatApp(locked(place), loader_with("Clara is a nurse."), "default")

    async def script(pilot: Pilot[Any]) -> None:
        await say(pilot, "what of Clara")
        await answered(pilot, app, 1)
        shown = screen_text(app)
        assert "read-only" in shown and "1 memory" in shown and "incognito, not stored" in shown
        await say(pilot, "/incognito")
        await until(pilot, lambda: "open read-only" in screen_text(app))
        assert app.incognito

    async def begin(pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: isinstance(app.screen, Question))
        assert "process 7" in screen_text(app)
        await pilot.press("right", "enter")
        await until(pilot, lambda: app.is_open and not isinstance(app.screen, Question))
        await script(pilot)

    drive(app, begin, opened=False)
    with MemoryBank.open(place) as bank:
        assert [memory.text for memory in bank.list()] == [FACT]


def test_who_does_not_want_to_read_leaves_with_the_error(place: Path) -> None:
    app = ChatApp(locked(place), loader_with("Fine."), "default")

    async def script(pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: isinstance(app.screen, Question))
        await pilot.press("enter")
        await until(pilot, lambda: app.failure is not None)

    drive(app, script, opened=False)
    assert isinstance(app.failure, BankLockedError)


def test_ctrl_c_while_the_model_loads_keeps_the_message(place: Path) -> None:
    import threading

    gate = threading.Event()

    def opener(ask: Ask, tell: Tell, *, read_only: bool = False) -> AbstractContextManager[MemoryBank]:
        return MemoryBank.open(place)

    def wait() -> None:
        gate.wait(30)

    app = ChatApp(opener, loader_with("Fine.", before=wait), "default")

    async def script(pilot: Pilot[Any]) -> None:
        await say(pilot, "what of Clara")
        await until(pilot, lambda: app.turns.waiting)
        await pilot.press("ctrl+c")
        await until(pilot, lambda: app.prompt.text == "what of Clara" and not app.turns.waiting)
        assert not app.is_closing
        gate.set()
        await until(pilot, lambda: app.loaded)
        await pilot.press("enter")
        await answered(pilot, app, 1)

    try:
        drive(app, script)
    finally:
        gate.set()


def test_a_reply_whose_memory_was_forgotten_is_marked_after_a_restart(place: Path) -> None:
    with MemoryBank.open(place) as bank:
        bank.remember("Clara likes lemon cake.")

    def opener(ask: Ask, tell: Tell, *, read_only: bool = False) -> AbstractContextManager[MemoryBank]:
        return MemoryBank.open(place)

    first = ChatApp(opener, loader_with("Clara is a nurse."), "default")

    async def begin(pilot: Pilot[Any]) -> None:
        await say(pilot, "what of Clara")
        await answered(pilot, first, 1)
        assert len(first.conversation.answers[0].memories) == 2

    drive(first, begin)
    with MemoryBank.open(place) as bank:
        bank.forget(bank.plan_forget(matching="lemon cake", cascade="none"))
    again = ChatApp(opener, loader_with("Fine."), "default", session=first.session_id)

    async def look(pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: "1 memory forgotten since" in screen_text(again))

    drive(again, look)
