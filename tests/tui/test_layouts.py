"""What the screens look like at fixed sizes, in both themes: the same places, told apart by their colours.

`MNEMOS_DRAW_LAYOUTS=1 pytest tests/tui/test_layouts.py` writes the layouts anew; read them before you keep
them.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.color import Color, ColorType
from rich.style import Style
from tests.tui.driving import answered, drive, say, screen_text, until
from tests.tui.scripted import loader_with, opener_at
from textual.pilot import Pilot

from mnemos import MemoryBank
from mnemos.tui.app.app import ChatApp
from mnemos.tui.app.forget_dialog import ForgetDialog
from mnemos.tui.app.inspector import Inspector

FACT = "My sister Clara works as a nurse in Leeds."
REPLY = "Clara works as a **nurse** in Leeds.\n\n```python\nprint('Leeds')\n```"
LAYOUTS = Path(__file__).parent / "layouts"
SIZES = [(60, 20), (100, 30), (160, 50)]
THEMES = ["mnemos-dark", "mnemos-light"]
LEAST_CONTRAST = 3.0  # of letters to what is behind them: WCAG 2.1, large text and parts of a screen
_CHANGING = [  # moments, durations and sizes: as wide as what they stand for
    (re.compile(r"\b\d+(\.\d+)? (tokens/s|ms|s|B)\b"), "~"),
    (re.compile(r"\b\d{4}-\d\d-\d\d( \d\d:\d\d)?"), "="),
]


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_every_screen_is_laid_out_as_drawn(
    tmp_path: Path, size: tuple[int, int], theme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    with MemoryBank.open(tmp_path / "bank") as bank:
        bank.remember(FACT)
    app = ChatApp(opener_at(tmp_path / "bank"), loader_with(REPLY), "default")
    found: dict[str, str] = {}
    faint: list[tuple[str, str, float]] = []

    async def script(pilot: Pilot[Any]) -> None:
        app.theme = theme

        async def see(scene: str) -> None:
            app.prompt.area.cursor_blink = False
            await pilot.pause(0.3)
            ids = [memory.id for memory in app.bank.list()] + [each.id for each in app.bank.sessions()]
            found[scene] = masked(screen_text(app), ids)
            faint.extend((scene, *each) for each in contrasts(app) if each[1] < LEAST_CONTRAST)

        await see("empty")
        await say(pilot, "What does Clara do?")
        await answered(pilot, app, 1)
        await see("reply")
        await pilot.press("f2")
        await until(pilot, lambda: app.panel.current is not None)
        await see("memories")
        await pilot.press("f")
        await until(pilot, lambda: isinstance(app.screen, ForgetDialog))
        await see("forget")
        await pilot.press("escape", "escape", "f3")
        await until(pilot, lambda: isinstance(app.screen, Inspector) and app.screen.table.count == 2)
        await until(pilot, lambda: FACT[:30] in screen_text(app))
        await see("inspector")

    drive(app, script, size)
    assert not faint, f"hard to read: {faint}"
    for scene, text in found.items():
        lines = text.splitlines()
        assert len(lines) <= size[1] and all(len(line) <= size[0] for line in lines)
        drawn = LAYOUTS / f"{scene}-{size[0]}x{size[1]}.txt"
        if os.environ.get("MNEMOS_DRAW_LAYOUTS"):
            LAYOUTS.mkdir(exist_ok=True)
            drawn.write_text(text, encoding="utf-8")
        assert text == drawn.read_text(encoding="utf-8"), f"{drawn.name} is laid out otherwise:\n{text}"


def masked(text: str, ids: Sequence[str]) -> str:
    """The screen without what changes from run to run."""
    for each in ids:
        text = text.replace(each, "#" * len(each)).replace(each[:8], "#" * 8)
    for pattern, mark in _CHANGING:
        text = pattern.sub(lambda match, mark=mark: mark * len(match.group()), text)
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def contrasts(app: Any) -> Iterator[tuple[str, float]]:
    """Each run of letters with the contrast of its colour to the one behind it, from 1 to 21; of a dialog's
    own where one is open, since the screen behind it is dimmed.
    """
    dialog = app.screen.query(".dialog") if app.screen.is_modal else ()
    region = dialog.first().content_region if dialog else app.screen.region
    for line in app.screen._compositor.render_strips()[region.y : region.bottom]:
        for segment in line.crop(region.x, region.right):
            if re.search(r"\w", segment.text) and segment.style is not None:
                yield segment.text, _contrast(segment.style)


def _contrast(style: Style) -> float:
    front, back = style.color, style.bgcolor
    if front is None or back is None:
        return 21.0  # the terminal's own colours
    if style.reverse:
        front, back = back, front
    one, two = (_luminance(each) for each in (front, back))
    return (max(one, two) + 0.05) / (min(one, two) + 0.05)


def _luminance(color: Color) -> float:
    assert color.type is ColorType.TRUECOLOR
    parts = [value / 255 for value in color.get_truecolor()]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
