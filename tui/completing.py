"""What the shell completes from the bank: ids, sessions, tags and namespaces.

A completion must neither ask nor fail aloud: where the bank can't be opened there is nothing to offer. The
bank is opened read-only.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from mnemos.memory.bank import MemoryBank

Found = list[tuple[str, str]]  # what is offered, and what it is
MOST = 50
_SHOWN = 48  # characters of a memory


def memory_ids(ctx: typer.Context, incomplete: str) -> Found:
    return _suggested(ctx, "memories", incomplete)


def session_ids(ctx: typer.Context, incomplete: str) -> Found:
    return _suggested(ctx, "sessions", incomplete)


def tags(ctx: typer.Context, incomplete: str) -> Found:
    return _suggested(ctx, "tags", incomplete)


def namespaces(ctx: typer.Context, incomplete: str) -> Found:
    def look(bank: "MemoryBank") -> Found:
        return [(name, "") for name in bank.namespaces() if name.startswith(incomplete)]

    return _from_bank(ctx, look)


def _suggested(ctx: typer.Context, what: str, incomplete: str) -> Found:
    def look(bank: "MemoryBank") -> Found:
        namespace = ctx.params.get("namespace") or os.environ.get("MNEMOS_NAMESPACE") or "default"
        found = bank.store.suggested(namespace, what, incomplete, MOST)
        return [(each, " ".join(said.split())[:_SHOWN]) for each, said in found]

    return _from_bank(ctx, look)


def _from_bank(ctx: typer.Context, look: "Callable[[MemoryBank], Found]") -> Found:
    from mnemos.errors import MnemosError
    from mnemos.tui import settings

    try:
        with settings.applied(), _opened(ctx.params.get("bank")) as bank:
            return look(bank)
    except (MnemosError, OSError):
        return []


@contextmanager
def _opened(given: object) -> "Iterator[MemoryBank]":
    from mnemos.memory.bank import MemoryBank, default_path
    from mnemos.store.keys import default_keys

    place = given or os.environ.get("MNEMOS_BANK") or default_path()
    with MemoryBank.open(
        Path(str(place)).expanduser(), create=False, read_only=True, sweep=False, keys=default_keys()
    ) as bank:
        yield bank
