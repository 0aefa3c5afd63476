"""The settings file: what it sets, what goes before it, and what is wrong in it."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tui.conftest import Command
from tests.tui.driving import drive, until
from tests.tui.scripted import loader_with, opener_at
from textual.pilot import Pilot

from mnemos.errors import UsageError
from mnemos.memory.bank import MemoryBank
from mnemos.tui import settings
from mnemos.tui.app.app import ChatApp


def file_of(mnemos: Command) -> Path:
    return Path(mnemos.environment["MNEMOS_CONFIG"])


def shown(mnemos: Command, **environment: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(mnemos("config", "show", "--json", **environment).out)["settings"]
    return found


def test_a_variable_goes_before_the_file_and_an_option_before_both(mnemos: Command, tmp_path: Path) -> None:
    assert mnemos("remember", "in the file's bank", "--namespace", "one").code == 0
    before = shown(mnemos)
    assert before.pop("bank")["origin"] == "variable MNEMOS_BANK"
    assert {each["origin"] for each in before.values()} == {"default"}
    assert mnemos("config", "set", "namespace", "one").code == 0
    assert shown(mnemos)["namespace"] == {"value": "one", "origin": f"file {file_of(mnemos)}"}
    assert "in the file's bank" in mnemos("memory", "list").out
    assert shown(mnemos, MNEMOS_NAMESPACE="two")["namespace"] == {
        "value": "two",
        "origin": "variable MNEMOS_NAMESPACE",
    }
    assert "in the file's bank" not in mnemos("memory", "list", MNEMOS_NAMESPACE="two").out
    assert "in the file's bank" in mnemos("memory", "list", "--namespace", "one", MNEMOS_NAMESPACE="two").out
    assert mnemos("config", "unset", "namespace").code == 0
    assert "in the file's bank" not in mnemos("memory", "list").out
    assert mnemos("config", "unset", "namespace").code == 2


def test_a_change_leaves_the_rest_of_the_file_alone(mnemos: Command) -> None:
    path = file_of(mnemos)
    path.write_text('# mine\nmodel = "a.gguf"  # the small one\n', encoding="utf-8")
    for name, value in (
        ("max_tokens", "40"),
        ("keys.app.inspect", "f8"),
        ("themes.sea.primary", "#112233"),
    ):
        assert mnemos("config", "set", name, value).code == 0
    text = path.read_text("utf-8")
    assert text.startswith('# mine\nmodel = "a.gguf"  # the small one\n')
    found = settings.read(path)
    assert found.max_tokens == 40 and found.keys == {"app.inspect": "f8"}
    assert found.themes["sea"].primary == "#112233"
    assert mnemos("config", "path").out.strip() == str(path)
    assert "max_tokens\t40\tfile" in mnemos("config", "show", "--origin").out
    assert [each.name for each in path.parent.glob(".*.new")] == []


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("max_tokens", "0", "greater than or equal to 1"),
        ("namespace", "../up", "A part of a namespace"),
        ("passphrase", "x", "no such setting"),
        ("themes.sea.primary", "blue", "pattern"),
        ("model", "", "empty"),
    ],
)
def test_a_value_that_does_not_hold_is_not_written(mnemos: Command, name: str, value: str, what: str) -> None:
    ran = mnemos("config", "set", name, value)
    assert ran.code == 2 and what in ran.err
    assert not file_of(mnemos).exists()


@pytest.mark.parametrize(
    "content", [b"model = [", b"\xff\xfe", b'colour = "red"\n', b"max_tokens = -3\n", b"x" * (2 << 20)]
)
def test_a_wrong_file_is_told_and_can_be_mended(mnemos: Command, content: bytes) -> None:
    file_of(mnemos).write_bytes(content)
    ran = mnemos("memory", "list")
    assert ran.code == 2 and "config.toml" in ran.err and "Traceback" not in ran.err
    assert mnemos("config", "show").code == 2
    assert mnemos("--help").code == 0
    if b"max_tokens" in content:
        assert mnemos("config", "unset", "max_tokens").code == 0
        assert mnemos("config", "show").code == 0


@given(st.text(max_size=60))
def test_any_text_is_settings_or_a_usage_error(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            settings.read(path)
        except UsageError as error:
            assert "config.toml" in str(error)


def chat(tmp_path: Path, lines: str) -> ChatApp:
    settings.settings_path().write_text(lines, encoding="utf-8")
    with MemoryBank.open(tmp_path / "bank") as bank:
        bank.remember("a fact")
    return ChatApp(opener_at(tmp_path / "bank"), loader_with("yes"), "default")


def test_the_app_takes_keys_and_themes_from_the_file(tmp_path: Path) -> None:
    lines = (
        'theme = "sea"\n[keys]\napp.inspect = "f8"\n"app.nothing" = "f7"\n[themes.sea]\nprimary = "#123456"\n'
    )
    app = chat(tmp_path, lines)
    assert app.theme == "sea" and app.current_theme.primary == "#123456"

    async def script(pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: app.is_open)
        await pilot.press("f8")
        await until(pilot, lambda: type(app.screen).__name__ == "Inspector")

    drive(app, script)


def test_a_theme_that_was_chosen_is_there_the_next_time(tmp_path: Path) -> None:
    app = chat(tmp_path, "# mine\n")

    async def script(pilot: Pilot[Any]) -> None:
        await pilot.press("f4")
        await until(pilot, lambda: "light" in settings.settings_path().read_text("utf-8"))

    drive(app, script)
    assert settings.settings_path().read_text("utf-8") == '# mine\ntheme = "light"\n'
    assert ChatApp(opener_at(tmp_path / "bank"), loader_with("yes"), "default").theme == "mnemos-light"


def test_a_broken_file_does_not_keep_the_app_from_starting(tmp_path: Path) -> None:
    app = chat(tmp_path, 'theme = "none such"\n')

    async def script(pilot: Pilot[Any]) -> None:
        await until(pilot, lambda: app.is_open)

    drive(app, script)
    assert app.theme == "mnemos-dark"
