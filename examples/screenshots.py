"""Draws the pictures of the README: the real app and a real bank, on the default model."""

import asyncio
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from textual.pilot import Pilot

from mnemos import MemoryBank
from mnemos.tui.app.app import ChatApp
from mnemos.tui.app.engine import loader_of, opener_of
from mnemos.tui.app.forget_dialog import ForgetDialog
from mnemos.tui.app.inspector import Inspector

TOLD = (
    "My sister Clara works as a nurse in Leeds.",
    "Clara's birthday is on the third of May, and she likes lemon cake.",
    "My bicycle is turquoise and stands in the cellar.",
    "The boat to Texel leaves at noon on Saturdays.",
    "I keep four hives of bees behind the old school.",
    "Dr Okafor is my dentist; the next visit is on 12 June.",
    "The wireless password is written inside the blue cupboard.",
)
QUESTION = "What does my sister Clara do for a living?"
SIZE = (108, 30)


async def until(pilot: Pilot[Any], condition: Callable[[], object]) -> None:
    """Lets the app run until the condition holds; gives up after two minutes."""
    async with asyncio.timeout(120):
        while not condition():
            await pilot.pause(0.05)
    await pilot.pause(0.4)


async def draw(app: ChatApp, folder: Path) -> None:
    def picture(name: str) -> None:
        app.save_screenshot(f"{name}.svg", path=str(folder))
        print(folder / f"{name}.svg")

    async with app.run_test(size=SIZE) as pilot:
        await until(pilot, lambda: app.loaded)
        app.prompt.write(QUESTION)
        await pilot.press("enter")
        await until(pilot, lambda: app.conversation.answers and not app.turns.is_running)
        picture("chat")
        await pilot.press("f2")
        await until(pilot, lambda: app.panel.current)
        picture("memories")
        await pilot.press("f")
        await until(pilot, lambda: isinstance(app.screen, ForgetDialog))
        picture("forget")
        await pilot.press("escape", "escape")
        await pilot.press("f3")
        await until(pilot, lambda: isinstance(app.screen, Inspector) and app.screen.table.count > len(TOLD))
        picture("inspector")
        await pilot.press("f4")
        await pilot.pause(0.3)
        picture("inspector-light")


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        os.environ["MNEMOS_KEY_DIR"] = f"{place}/keys"
        os.environ["MNEMOS_CONFIG"] = f"{place}/config.toml"  # whose theme the last picture changes
        bank_path = Path(place) / "bank"
        with MemoryBank.open(bank_path) as bank:
            for text in TOLD:
                bank.remember(text)
        app = ChatApp(opener_of(bank_path, "default", create=False), loader_of("default", 40), "default")
        try:
            asyncio.run(draw(app, folder))
        finally:
            app.is_closing = True
            app.stack.close()


if __name__ == "__main__":
    main()
