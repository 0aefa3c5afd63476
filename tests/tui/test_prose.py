"""Markdown as lines: what is set, that growing ends as setting does, and what a finished block costs."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tui.driving import screen_text
from textual.app import App, ComposeResult
from textual.selection import Selection

from mnemos.tui.app import typeset
from mnemos.tui.app.markdown_tables import fit
from mnemos.tui.app.pace import Pace, PromptScreen
from mnemos.tui.app.prose import Prose
from mnemos.tui.app.typeset import Typeset

TEXT = """# Clara

She is a **nurse** in [Graz](https://graz.at), says the `bank`.

- one
  - two
- three

> quoted
> words

```python
def reach(days):
    return 3.5 * days
```

| a | b |
|---|--:|
| left | 1 |
| wide words here | 22 |

1. first
2. second

---
"""
_STARTS = (
    "# A\n",
    "- item\n",
    "  - in\n",
    "```py\nx = 1\n",
    "```\n",
    "> q\n",
    "1. n\n",
    "| a | b |\n|---|---|\n",
)
_MIDDLES = (
    "words ",
    "\n",
    "\n\n",
    "**b**",
    "| 1 | 2 |\n",
    "---\n",
    "<b>\n",
    "    code\n",
    "===\n",
    "\\\n",
    "漢字 ",
)
PIECES = st.sampled_from((*_STARTS, *_MIDDLES))


def plain(text: str, width: int = 40) -> list[str]:
    lines = Typeset(text)
    lines.lay(width)
    return [line.plain.rstrip() for line in lines.lines]


def test_each_kind_of_block_is_set() -> None:
    assert plain(TEXT) == [
        *("Clara", "", "She is a nurse in Graz, says the bank.", ""),
        *("• one", "  ◦ two", "• three", "", "▌ quoted words", ""),
        *(
            "                                 python".rstrip(),
            " def reach(days):",
            "     return 3.5 * days",
            "",
            "",
        ),
        *("a                  b", "───────────────  ───", "left               1", "wide words here   22", ""),
        *("1. first", "2. second", "", "─" * 40),
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(PIECES, max_size=14), st.integers(6, 60))
def test_a_text_that_grows_ends_as_one_that_is_set(pieces: list[str], width: int) -> None:
    grown = Typeset()
    for piece in pieces:
        grown.grow(piece)
        grown.lay(width)
    assert [line.plain.rstrip() for line in grown.lines] == plain("".join(pieces), width)
    assert all(line.cell_length <= width for line in grown.lines)


def test_a_block_that_is_finished_is_set_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    blocks_of = typeset.blocks_of
    monkeypatch.setattr(typeset, "blocks_of", lambda text: read.append(len(text)) or blocks_of(text))
    text = Typeset()
    for _ in range(300):
        text.grow("Some words of a block.\n\n")
        text.lay(60)
    assert len(text.lines) == 599 and max(read) < 100


@pytest.mark.parametrize(
    ("sizes", "width", "found"),
    [([4, 4], 20, [4, 4]), ([30, 4], 20, [14, 4]), ([30, 30, 1], 24, [8, 8, 3]), ([9, 9, 9], 4, [3, 3, 3])],
)
def test_the_widest_columns_give_way(sizes: list[int], width: int, found: list[int]) -> None:
    assert fit(sizes, width) == found


class _App(Pace, App[None]):
    def get_default_screen(self) -> PromptScreen:
        return PromptScreen(id="_default")

    def compose(self) -> ComposeResult:
        yield Prose("Told **before**.")


def shown(script: Any) -> None:
    async def run() -> None:
        app = _App()
        async with app.run_test(size=(40, 12)) as pilot:
            await script(app, pilot)

    asyncio.run(run())


def test_words_show_as_they_come_and_the_mouse_selects_them() -> None:
    async def script(app: _App, pilot: Any) -> None:
        prose = app.query_one(Prose)
        assert "Told before." in screen_text(app)
        prose.update("")
        prose.add("# Said\n\nSome words")
        prose.add(" more")
        await pilot.pause(0.3)
        assert "Said\n\nSome words more" in screen_text(app) and prose.size.height == 3
        assert prose.get_selection(Selection(None, None)) == ("Said\n\nSome words more", "\n")
        prose.update("All of it.")
        await pilot.pause(0.1)
        assert prose.text == "All of it." and prose.size.height == 1

    shown(script)


def test_what_is_put_off_waits_for_a_letter_that_is_being_answered() -> None:
    async def script(app: _App, pilot: Any) -> None:
        did: list[str] = []
        app.put_off(lambda: did.append("at rest"), 0.02)
        cancel = app.put_off(lambda: did.append("never"), 0.02)
        cancel()
        await pilot.pause(0.1)
        assert did == ["at rest"]
        await pilot.press("x")
        app.put_off(lambda: did.append("behind a letter"), 0.01)
        await asyncio.sleep(0.08)
        assert did == ["at rest"], "somebody types"
        app.answered()
        await asyncio.sleep(0.02)
        assert did[1:] == ["behind a letter"]
        app.put_off(lambda: did.append("late"), 0.0)
        await asyncio.sleep(0.8)
        assert did[2:] == ["late"], "no letter came"

    shown(script)
