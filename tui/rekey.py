"""`mnemos bank rekey`: another master key for the bank."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mnemos.errors import NotFoundError, UsageError
from mnemos.tui import console, output
from mnemos.tui.options import Bank, Json, Namespace

if TYPE_CHECKING:
    from mnemos.memory.bank import MemoryBank
    from mnemos.store.keys import KeyProvider

NEW_PASSPHRASE = "MNEMOS_NEW_PASSPHRASE"


def rekey(
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="Lock it with a new passphrase from here on.")
    ] = False,
    key_file: Annotated[
        bool, typer.Option("--key-file", help="Lock it with a new key file from here on.")
    ] = False,
    keep_old: Annotated[
        Path | None,
        typer.Option(
            "--keep-old", metavar="FILE", help="Keep the old key in a new file.", show_default=False
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    bank: Bank = None,
    namespace: Namespace = "default",
    json: Json = False,
) -> None:
    """Put the bank under a new master key and destroy the old one. Older copies can't be read any more."""
    from mnemos.tui.opening import open_bank

    if passphrase and key_file:
        raise UsageError("choose one of --passphrase and --key-file")
    if not yes and keep_old is None:
        console.require_person("add --yes to destroy the old key without being asked, or --keep-old FILE")
    with open_bank(bank, namespace) as opened:
        new_keys = _new_keys(opened, passphrase=passphrase, key_file=key_file)
        if not yes and keep_old is None:
            console.say(f"the old key will be destroyed ({opened.key_location})")
            console.say("copies of the bank made until now can't be read any more then")
            if not console.confirm("Change the key?"):
                raise NotFoundError("the key was not changed")
        done = opened.rekey(new_keys, keep_old=keep_old)
    if json:
        output.document(
            {
                "key": done.key_location,
                "destroyed": done.destroyed,
                "kept": done.kept,
                "pending": done.pending,
            }
        )
    else:
        output.fields({"key": done.key_location} | ({} if done.kept is None else {"old key": done.kept}))
    if done.pending:
        console.say("another process is reading the bank: the old key goes at the next command that writes")
    console.say("back up the new key: without it the bank can't be read")


def _new_keys(opened: "MemoryBank", *, passphrase: bool, key_file: bool) -> "KeyProvider | None":
    """None for a new key in the same key file."""
    from mnemos.store.keys import KeyFile, Passphrase, key_directory

    if opened.lock_kind == "file" and not passphrase:
        return None
    if key_file:
        return KeyFile(key_directory() / f"{opened.bank_id}.key")
    return Passphrase(console.new_passphrase(NEW_PASSPHRASE, "New passphrase: "))
