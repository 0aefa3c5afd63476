"""`mnemos config`: what the settings file sets, and what holds."""

from typing import Annotated, Any

import typer

from mnemos.errors import UsageError
from mnemos.tui import console, output
from mnemos.tui.options import Json, UnusedBank, UnusedNamespace

Name = Annotated[str, typer.Argument(metavar="NAME", help="A setting; `mnemos config show` lists them.")]


def show(
    origin: Annotated[
        bool, typer.Option("--origin", help="Also where each comes from: variable, file or default.")
    ] = False,
    bank: UnusedBank = None,
    namespace: UnusedNamespace = "default",
    json: Json = False,
) -> None:
    """Print the settings that hold for a command without options."""
    from mnemos.tui.settings import read, settings_path
    from mnemos.tui.settings_schema import Settings, with_origins

    path = settings_path()
    read(path)  # what is wrong in it is told first
    found = with_origins()
    if json:
        values = {name: {"value": _plain(value), "origin": where} for name, (value, where) in found.items()}
        output.document({"file": str(path), "exists": path.exists(), "settings": values})
        return
    rows = [
        [name, _text(value), *([where] if origin else []), Settings.model_fields[name].description or ""]
        for name, (value, where) in found.items()
    ]
    output.table(["setting", "value", *(["origin"] if origin else []), "what it is"], rows)


def set_(
    name: Name,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="Its new value.")],
    bank: UnusedBank = None,
    namespace: UnusedNamespace = "default",
    json: Json = False,
) -> None:
    """Set a setting in the file: `model`, `theme`, `keys.app.inspect`, `themes.NAME.primary` ..."""
    from mnemos.tui.settings import change, settings_path

    change(name, _typed(value))
    _told(f"{name} is set in {settings_path()}", {"set": name, "file": str(settings_path())}, json)


def unset(
    name: Name, bank: UnusedBank = None, namespace: UnusedNamespace = "default", json: Json = False
) -> None:
    """Take a setting out of the file."""
    from mnemos.tui.settings import change, settings_path

    change(name, None)
    _told(
        f"{name} is no longer set in {settings_path()}", {"unset": name, "file": str(settings_path())}, json
    )


def path(bank: UnusedBank = None, namespace: UnusedNamespace = "default", json: Json = False) -> None:
    """Print where the settings file is, or would be."""
    from mnemos.tui.settings import settings_path

    found = settings_path()
    if json:
        output.document({"file": str(found), "exists": found.exists()})
    else:
        output.text(str(found), end="\n")


def _typed(value: str) -> object:
    """As TOML has it: numbers and truth values are no strings."""
    if not value:
        raise UsageError("the value is empty; `mnemos config unset NAME` takes a setting out")
    if value in ("true", "false"):
        return value == "true"
    return int(value) if value.isascii() and value.isdigit() else value


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} = {_text(part)}" for key, part in value.items()) or "-"
    return "-" if value is None else str(value)


def _plain(value: object) -> Any:
    return value if isinstance(value, str | int | dict | None) else str(value)


def _told(sentence: str, fields: dict[str, object], json: bool) -> None:
    if json:
        output.document(fields)
    else:
        console.say(sentence)
