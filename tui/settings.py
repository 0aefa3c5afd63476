"""The settings file: what stands where neither an option nor a variable is given. Nobody needs one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnemos.errors import UsageError

if TYPE_CHECKING:
    from tomlkit import TOMLDocument

    from mnemos.tui.settings_schema import Settings

VARIABLE = "MNEMOS_CONFIG"
PREFIX = "MNEMOS_"  # of the variable that goes before a setting: MNEMOS_MODEL before `model`
_MAX_BYTES = 1 << 20


def settings_path() -> Path:
    """`MNEMOS_CONFIG`, or `config.toml` in the platform's directory for settings."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named).expanduser()
    from platformdirs import user_config_path

    return user_config_path("mnemos") / "config.toml"


@contextmanager
def applied() -> Iterator[None]:
    """Settings of the file stand in for variables that are not set, as long as the block runs."""
    path = settings_path()
    if not path.exists():
        yield
        return
    given = read(path)
    held = {
        f"{PREFIX}{name}".upper(): str(value)
        for name, value in given.model_dump(exclude_none=True, exclude={"keys", "themes"}).items()
    }
    absent = {name: value for name, value in held.items() if name not in os.environ}
    os.environ.update(absent)
    try:
        yield
    finally:
        for name in absent:
            os.environ.pop(name, None)


def read(path: Path) -> "Settings":
    """What the file sets. UsageError with the name that is wrong."""
    return _parsed(_document(path).unwrap(), path)


def _parsed(values: dict[str, Any], path: Path, *, is_new: bool = False) -> "Settings":
    from pydantic import ValidationError

    from mnemos.tui.settings_schema import Settings

    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        what = "there is no such setting" if first["type"] == "extra_forbidden" else first["msg"]
        hint = "nothing was changed" if is_new else f"`mnemos config unset {name}` takes it out"
        raise UsageError(
            f"{path}: {name}: {what}; {hint}. `mnemos config show` lists the settings."
        ) from None


def change(name: str, value: object) -> None:
    """Sets a setting in the file, or takes it out for None. Comments and order stay; UsageError."""
    path = settings_path()
    document = _document(path)
    table, key = _place(document, name, create=value is not None)
    if value is None:
        if table is None or key not in table:
            raise UsageError(f"{path} does not set {name}.")
        del table[key]
    else:
        assert table is not None
        table[key] = value
        _parsed(document.unwrap(), path, is_new=True)  # what does not hold is refused before it is written
    _replace(path, document.as_string())


def _place(document: Any, name: str, *, create: bool) -> tuple[Any, str]:
    """The table that holds a setting, and its key there: `keys.app.why` is `app.why` of `keys`."""
    from tomlkit import table

    group, dot, key = name.partition(".")
    if not dot:
        return document, name
    if group not in document:
        if not create:
            return None, key
        document[group] = table()
    if group == "themes" and "." in key:
        theme, _, key = key.partition(".")
        if theme not in document[group] and create:
            document[group][theme] = table()
        return document[group].get(theme), key
    return document[group], key


def _document(path: Path) -> "TOMLDocument":
    import tomlkit
    from tomlkit.exceptions import ParseError

    try:
        if path.exists() and path.stat().st_size > _MAX_BYTES:
            raise UsageError(f"{path} is over 1 MiB; that is no file of settings.")
        return tomlkit.parse(path.read_text("utf-8"))
    except FileNotFoundError:
        return tomlkit.document()
    except (ParseError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML ({error}). Mend it, or move it away.") from None


def _replace(path: Path, text: str) -> None:
    """The file as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    target = path.resolve()  # a link stays one
    beside = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    finally:
        with suppress(FileNotFoundError):
            beside.unlink()
