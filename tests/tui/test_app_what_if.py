"""The reply beside the one without a memory; sessions as files; copying."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from tests.tui.driving import answered, drive, say, screen_text, until
from tests.tui.scripted import loader_with, opener_at
from textual.pilot import Pilot

from mnemos import MemoryBank
from mnemos.tui.app.app import ChatApp
from mnemos.tui.app.choices import Question
from mnemos.tui.app.clipboard import copy_to_system
from mnemos.tui.app.what_if import WhatIf

FACT = "My sister Clara works as a nurse in Leeds."


@pytest.fixture
def place(tmp_path: Path) -> Path:
    with MemoryBank.open(tmp_path / "bank") as bank:
        bank.remember(FACT)
    return tmp_path / "bank"


def chat(place: Path, *replies: str, **settings: Any) -> ChatApp:
    return ChatApp(opener_at(place), loader_with(*(replies or ("Fine.",)), **settings), "default")


@pytest.mark.parametrize("size", [(60, 20), (120, 40)], ids=["60x20", "120x40"])
def test_w_shows_the_reply_without_a_memory_beside_it(place: Path, size: tuple[int, int]) -> None:
    app = chat(place, "Clara is a nurse.", "I do not know.")

    async def script(pilot: Pilot[Any]) -> None:
        await say(pilot, "what of Clara")
        await answered(pilot, app, 1)
        held = app.bank.list()
        await pilot.press("f2")
        await until(pilot, lambda: app.panel.current is not None)
        await pilot.press("w")
        await until(pilot, lambda: isinstance(app.screen, WhatIf) and app.screen.is_over)
        shown = screen_text(app)
        assert "Clara is a nurse." in shown and "I do not know." in shown
        assert f"Without: {FACT[:20]}" in shown and "with 1 memory" in shown and "with 0 memories" in shown
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, WhatIf))
        assert app.bank.list() == held and app.panel.current is not None

    drive(app, script, size)


def test_a_session_is_exported_and_a_file_is_not_overwritten_unasked(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = chat(place, "Clara is a **nurse**.")
    monkeypatch.chdir(place.parent)

    async def script(pilot: Pilot[Any]) -> None:
        await say(pilot, "/export")
        await until(pilot, lambda: "no session to export" in screen_text(app))
        app.prompt.write("")
        await say(pilot, "what of Clara")
        await answered(pilot, app, 1)
        await say(pilot, "/export talk.md")
        file = place.parent / "talk.md"
        await until(pilot, lambda: "1 turn written to talk.md" in screen_text(app))
        assert "what of Clara" in file.read_text() and "Clara is a **nurse**." in file.read_text()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        file.write_text("mine")
        await say(pilot, "/export talk.md")
        await until(pilot, lambda: isinstance(app.screen, Question))
        await pilot.press("enter")
        await until(pilot, lambda: not isinstance(app.screen, Question))
        assert file.read_text() == "mine", "No is what Enter says"
        await say(pilot, "/export talk.md")
        await until(pilot, lambda: isinstance(app.screen, Question))
        await pilot.press("right", "enter")
        await until(pilot, lambda: "nurse" in file.read_text())
        await say(pilot, "/export talk.json")
        await until(pilot, lambda: (place.parent / "talk.json").exists())
        document = json.loads((place.parent / "talk.json").read_text())
        assert [each["text"] for each in document["exchanges"]] == ["what of Clara"]
        await say(pilot, "/export talk.docx")
        await until(pilot, lambda: "tells no format" in screen_text(app))
        app.prompt.write("")
        await say(pilot, "/export nowhere/talk.md")
        await until(pilot, lambda: "can't be written" in screen_text(app))
        assert not list(place.parent.glob(".*.part"))

    drive(app, script)


def test_what_is_copied_reaches_the_programs_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "wl-copy"
    program.write_text(f"#!/bin/sh\ncat > {tmp_path}/copied\n")
    program.chmod(0o755)
    for name in ("DISPLAY", "WSL_DISTRO_NAME", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert not copy_to_system("words"), "without a screen there is no clipboard of a system"
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert copy_to_system("żółw\n")
    assert (tmp_path / "copied").read_text() == "żółw\n"
    program.write_text("#!/bin/sh\nexit 1\n")
    assert not copy_to_system("words")
