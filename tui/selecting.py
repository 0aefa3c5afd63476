"""Selectors of memories as options give them."""

from pathlib import Path
from typing import TYPE_CHECKING

from mnemos.tui import console

if TYPE_CHECKING:
    from mnemos.attention.models import LanguageModel
    from mnemos.memory.bank import MemoryBank
    from mnemos.store.selectors import Condition


def source_as_stored(source: str | None) -> str | None:
    """The source as memories carry it: the absolute path of a file that exists, else what was given."""
    if source is None or not Path(source).expanduser().exists():
        return source
    from mnemos.memory.ingest import source_of

    return source_of(source)


def where(text: str | None) -> "Condition | None":
    """What `--where` says, `-` read from standard input. InvalidSelectorError says where it can't be read."""
    if text is None:
        return None
    from mnemos.memory.where import parse_where
    from mnemos.store.selectors import Condition, Source, replaced

    def as_stored(node: Condition) -> Condition:
        return Source(source_as_stored(node.path) or node.path) if isinstance(node, Source) else node

    return replaced(parse_where(console.text_or_stdin(text)), as_stored)


def model_for(
    condition: "Condition | None", opened: "MemoryBank", name: str | None, namespace: str
) -> "LanguageModel | None":
    """The model, where a `like` needs one; what is new is encoded first, with a progress bar."""
    if condition is None:
        return None
    from contextlib import suppress

    from mnemos.errors import BankLockedError
    from mnemos.memory.choosing import has_like
    from mnemos.tui.opening import catch_up, load_model

    if not has_like(condition):
        return None
    model = load_model(name)
    with suppress(BankLockedError):  # somebody is writing: what is encoded already is scored
        catch_up(opened, model, namespace)
    return model
