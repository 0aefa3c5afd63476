"""`mnemos memory receipt ...`: the signed proofs of what was forgotten."""

import json as json_format
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from mnemos.errors import NotFoundError, UsageError
from mnemos.tui import console, output
from mnemos.tui.options import Bank, Json, Jsonl, Namespace


def list_receipts(
    bank: Bank = None, namespace: Namespace = "default", json: Json = False, jsonl: Jsonl = False
) -> None:
    """List the receipts of the whole bank, oldest first."""
    from mnemos.tui.opening import open_bank

    with open_bank(bank, namespace) as opened:
        found = [dict(receipt.document) for receipt in opened.receipts()]
    if json or jsonl:
        output.lines(found) if jsonl else output.document({"receipts": found})
        return
    columns = ("id", "finished", "memories", "bytes", "what")
    output.table(
        columns,
        [
            (
                output.short_id(body["id"]),
                _when(body),
                body["memories"],
                output.amount(body["bytes"]),
                _what(body),
            )
            for body in found
        ],
        right=("memories", "bytes"),
    )


def show(
    receipt_id: Annotated[str, typer.Argument(metavar="ID", help="A receipt's id or a prefix of it.")],
    bank: Bank = None,
    namespace: Namespace = "default",
    json: Json = False,
) -> None:
    """Print a receipt as it was signed, to be kept or sent: `receipt verify` takes it."""
    from mnemos.store.ids import check_prefix
    from mnemos.tui.opening import open_bank

    prefix = check_prefix(receipt_id, "receipt")
    with open_bank(bank, namespace) as opened:
        found = [dict(each.document) for each in opened.receipts() if each.id.startswith(prefix)]
    if not found:
        raise NotFoundError(
            f"no receipt has an id that starts with {prefix!r}; `memory receipt list` has them"
        )
    if len(found) > 1:
        raise UsageError(f"more than one receipt has an id that starts with {prefix!r}; give more of it")
    if json:
        output.document({"receipt": found[0]})
    else:
        print(json_format.dumps(found[0], indent=2))


def verify(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="A receipt's JSON document.")],
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="HEX", help="The key it must be signed with.", show_default=False),
    ] = None,
    bank: Bank = None,
    namespace: Namespace = "default",
    json: Json = False,
) -> None:
    """Check a receipt's signature, offline and without a bank.

    --bank, on the command line, also checks that it is that bank's.
    """
    from mnemos.store.receipts import read_receipt, same_key, verify_receipt

    document = read_receipt(_read(file))
    why = None
    if not verify_receipt(document):
        why = "its signature does not hold: it was changed, or made by somebody else"
    elif not all(held is True for held in document["checks"].values()):
        why = "it says that a check failed"
    elif key is not None and not same_key(key, document["public_key"]):
        why = "it is signed with another key"
    elif _is_typed(context, "bank"):
        why = _not_of(bank, namespace, document)
    if json:
        shown = {name: document[name] for name in ("id", "bank", "memories", "bytes", "public_key")}
        output.document({"valid": why is None, "reason": why, **shown})
    elif why is None:
        output.fields(
            {
                "id": document["id"],
                "bank": document["bank"],
                "finished": _when(document),
                "what": _what(document),
                "memories": document["memories"],
                "bytes": output.amount(document["bytes"]),
                "key": document["public_key"],
            }
        )
    if why is not None:
        console.say(f"error: the receipt is not valid: {why}")
        raise typer.Exit(NotFoundError.exit_code)
    console.say("the receipt is valid")


def _is_typed(context: typer.Context, name: str) -> bool:
    """Whether an option is on the command line itself, and not from the environment."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _read(file: str) -> bytes:
    if file == "-":
        return sys.stdin.buffer.read()
    return Path(file).read_bytes()


def _not_of(bank: Path | None, namespace: str, document: Mapping[str, Any]) -> str | None:
    from mnemos.tui.opening import open_bank

    with open_bank(bank, namespace) as opened:
        if (document["bank"], document["public_key"]) != (opened.bank_id, opened.public_key):
            return "it is not of that bank"
    return None


def check_writable(file: Path) -> None:
    """UsageError, before anything is forgotten, for a place that no receipt can be saved at."""
    if file.exists():
        raise UsageError(f"{file} exists already; name a new file for the receipt. Nothing was forgotten")
    if not file.absolute().parent.is_dir() or not os.access(file.absolute().parent, os.W_OK):
        raise UsageError(f"no file can be made at {file}; name another place. Nothing was forgotten")


def save(document: Mapping[str, Any], file: Path) -> None:
    """Writes a receipt into a new file, and says so."""
    try:
        write(document, file)
    except OSError as error:
        console.say(
            f"the receipt could not be saved ({error.strerror}); "
            f"`memory receipt show {document['id']}` prints it"
        )
        return
    console.say(f"saved the receipt in {file}")


def write(document: Mapping[str, Any], file: Path) -> None:
    """Writes a receipt into a new file. Raises OSError."""
    with file.open("x", encoding="ascii") as out:
        out.write(json_format.dumps(dict(document), indent=2) + "\n")


def _when(document: Mapping[str, Any]) -> str:
    try:
        moment = datetime.fromtimestamp(document["finished_us"] / 1_000_000, UTC)
    except (OverflowError, ValueError, OSError):
        return str(document["finished_us"])
    return moment.isoformat(timespec="seconds")


def _what(document: Mapping[str, Any]) -> str:
    if document["whole_namespace"]:
        return f"namespace {document['namespace']}"
    replies = len(document["rewritten"])
    return "memories" if not replies else f"memories, and the words of {replies} replies"
