"""Drives an app through Textual's pilot, over a real bank."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from textual import events
from textual.pilot import Pilot

from mnemos.tui.app.app import ChatApp
from mnemos.tui.app.base import MemoryApp

Script = Callable[[Pilot[Any]], Awaitable[None]]


def drive(app: MemoryApp, script: Script, size: tuple[int, int] = (100, 30), *, opened: bool = True) -> None:
    """Runs the script with the app on a screen of this size, then closes the bank. Unless `opened` is off,
    the bank is open when the script begins.
    """

    async def run() -> None:
        async with app.run_test(size=size) as pilot:
            if opened:
                await until(pilot, lambda: app.is_open)
            await script(pilot)
            await app.stop_turn()

    try:
        asyncio.run(run())
    finally:
        app.is_closing = True
        app.stack.close()


async def until(pilot: Pilot[Any], condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Lets the app run until the condition holds."""
    end = asyncio.get_running_loop().time() + timeout_s
    while not condition():
        assert asyncio.get_running_loop().time() < end, f"timed out; the screen: {screen_text(pilot.app)}"
        await pilot.pause(0.02)
    await pilot.pause()


async def say(pilot: Pilot[Any], text: str) -> None:
    """Pastes a line into whatever has the focus, and presses Enter."""
    pilot.app.post_message(events.Paste(text))
    await until(pilot, lambda: text in getattr(pilot.app.focused, "text", text))
    await pilot.press("enter")


async def answered(pilot: Pilot[Any], app: ChatApp, replies: int) -> None:
    """Until so many replies are there and no turn runs."""
    await until(pilot, lambda: len(app.conversation.answers) >= replies and not app.turns.is_running)


def screen_text(app: Any) -> str:
    """What is on the screen, as lines of text."""
    screen = app.screen
    lines = [
        "".join(segment.text for segment in line).rstrip() for line in screen._compositor.render_strips()
    ]
    return "\n".join(lines)
