"""How the app looks and which keys it takes, by the settings file, where a theme that was chosen is kept."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from textual.app import App
from textual.binding import Binding
from textual.theme import Theme

from mnemos.errors import MnemosError
from mnemos.tui.app.themes import DARK, LIGHT
from mnemos.tui.settings import change, read, settings_path

if TYPE_CHECKING:
    from mnemos.tui.app.base import MemoryApp

SHORT_NAMES = {"dark": DARK.name, "light": LIGHT.name}


def dress(app: "MemoryApp") -> list[str]:
    """Registers themes, takes the chosen one and the person's keys; what can't be followed, in words."""
    for theme in (DARK, LIGHT):
        app.register_theme(theme)
    app.theme = DARK.name
    path = settings_path()
    if not path.exists():
        return []
    try:
        settings = read(path)
    except MnemosError as error:
        return [str(error)]
    notes: list[str] = []
    for name, colours in settings.themes.items():
        app.register_theme(Theme(name=name, **colours.model_dump(exclude_none=True)))
    if settings.theme is not None:
        wanted = SHORT_NAMES.get(settings.theme, settings.theme)
        if wanted in app.available_themes:
            app.theme = wanted
        else:
            notes.append(f"{path}: there is no theme {settings.theme}; /theme shows them")
    known = set(binding_ids(app))
    unknown = sorted(settings.keys.keys() - known)
    notes += [f"{path}: there is no action {name} to give a key to" for name in unknown]
    app.set_keymap({name: keys for name, keys in settings.keys.items() if name in known})
    return notes


def keep_theme(name: str) -> None:
    """Writes the chosen theme into the settings file. MnemosError, OSError."""
    change("theme", {long: short for short, long in SHORT_NAMES.items()}.get(name, name))


def binding_ids(app: "MemoryApp") -> Iterator[str]:
    """Names of the actions that can be given other keys."""
    from mnemos.tui.app.attachments import Chip
    from mnemos.tui.app.conversation import Entry
    from mnemos.tui.app.detail import Detail
    from mnemos.tui.app.inspector import Inspector
    from mnemos.tui.app.memories_panel import MemoriesPanel, Recalled
    from mnemos.tui.app.prompt import Prompt, PromptText
    from mnemos.tui.app.sidebar import Sidebar
    from mnemos.tui.app.table import MemoryTable
    from mnemos.tui.app.timeline import Timeline

    owners: Iterable[type] = (
        *(Chip, Detail, Entry, Inspector, MemoriesPanel, Recalled, Prompt, PromptText, Sidebar, MemoryTable),
        Timeline,
        *type(app).__mro__,
    )
    for owner in owners:
        if owner is not App:
            for binding in vars(owner).get("BINDINGS", ()):
                if isinstance(binding, Binding) and binding.id:
                    yield binding.id
