"""Opens the bank and loads the model that a command works with, and tells the person what takes time."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mnemos.errors import BankUnreadableError
from mnemos.tui.console import ask_secret, is_interactive, progress, say

if TYPE_CHECKING:
    from mnemos.attention.models import LanguageModel
    from mnemos.memory.bank import MemoryBank
    from mnemos.store.keys import KeyProvider


@contextmanager
def open_bank(
    path: Path | None,
    namespace: str,
    *,
    create: bool = False,
    sweep: bool = True,
    read_only: bool = False,
    ask: Callable[[], str] | None = None,
    tell: Callable[[str], None] = say,
) -> "Iterator[MemoryBank]":
    """The bank, closed at the end. A bank that is made now says where its key is, through `tell`.

    `ask` gives the passphrase of a bank that has one; by default the person is asked on the terminal. The
    namespace's name is looked at first, so that no bank is made for one that can't be.
    """
    from mnemos.memory.bank import MemoryBank, default_path
    from mnemos.store.ids import check_namespace

    check_namespace(namespace)
    place = (path or default_path()).expanduser()
    is_new = create and not (place.is_dir() and any(place.iterdir()))
    try:
        opened = MemoryBank.open(
            place, create=create, sweep=sweep, read_only=read_only, keys=keys(ask), actor="cli"
        )
    except OSError as error:
        raise BankUnreadableError(
            f"no bank can be at {place} ({error.strerror}); name another place"
        ) from error
    with opened as bank:
        if is_new:
            tell(f"made a new bank in {bank.path}")
            tell(f"back up its key, without which it can't be read: {bank.key_location}")
        yield bank


def keys(ask: Callable[[], str] | None = None) -> "KeyProvider":
    """A key file or a passphrase, as the bank is locked; asked for where there is a terminal."""
    from mnemos.store.keys import default_keys

    if ask is not None:
        return default_keys(ask)
    return default_keys(ask_passphrase if is_interactive() else None)


def ask_passphrase() -> str:
    return ask_secret("Passphrase of the bank: ")


def load_model(name: str | None, *, calibration: str | None = None) -> "LanguageModel":
    """The named model or the default one, fetched on first use with a progress bar.

    `calibration` as in `load`. One that isn't calibrated says so, unless that was asked for.
    """
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # Triton warns where it is unset
    from mnemos.attention.embedder_files import lacks_embedder
    from mnemos.attention.models import load

    with progress("fetching the model", in_bytes=True) as on_progress:
        model = load(name, calibration=calibration, on_progress=on_progress)
    if model.calibration.embedder and lacks_embedder(model.calibration.embedder):
        say(
            f"memories are found without {model.calibration.embedder}, which isn't here: `mnemos model pull` "
            "fetches it"
        )
    if not model.calibration.calibrated and calibration is None and model.config.msa is None:
        say(
            f"{model.name} is not calibrated; its memories are found and read with safe defaults "
            "(`mnemos model calibrate` finds better ones)"
        )
    return model


def catch_up(bank: "MemoryBank", model: "LanguageModel", namespace: str) -> None:
    """Make the traces that are missing, with a progress bar: after a large ingest this takes a while."""
    with progress("encoding what is new") as on_progress:
        bank.encode_pending(model, namespace=namespace, on_progress=on_progress)
