"""A session as a file of one's own: Markdown to read, or JSON for programs. It is not encrypted."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mnemos.errors import UsageError
from mnemos.tui import forms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mnemos.memory.bank import MemoryBank
    from mnemos.memory.records import Memory
    from mnemos.store.records import SessionRecord


def path_of(named: str, session_id: str) -> Path:
    """Where a session goes: a file by its name, in a folder that is named, or here. UsageError."""
    default = f"session-{session_id[:8]}.md"
    path = Path(named or default).expanduser()
    if path.is_dir():
        path /= default
    if path.suffix.casefold() not in (".md", ".json"):
        raise UsageError(f"{path.name} tells no format; end it in .md for Markdown or .json for JSON")
    return path


def write(bank: "MemoryBank", namespace: str, session_id: str, path: Path, *, replace: bool = False) -> int:
    """Write a session's exchanges to a file that only its owner reads; how many.

    FileExistsError where the file is there and `replace` is off; OSError; NotFoundError.
    """
    session = bank.get_session(session_id, namespace=namespace)
    exchanges = bank.history(session.id, namespace=namespace, include_hidden=True)
    text = (_as_json if path.suffix.casefold() == ".json" else _as_markdown)(session, exchanges)
    if path.exists() and not replace:
        raise FileExistsError(f"{path} is there already")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()
    return len(exchanges)


def _as_json(session: "SessionRecord", exchanges: "Sequence[Memory]") -> str:
    document = {"session": forms.session(session), "exchanges": [forms.memory(each) for each in exchanges]}
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def _as_markdown(session: "SessionRecord", exchanges: "Sequence[Memory]") -> str:
    parts = [f"# {session.title or f'Session {session.id[:8]}'}\n"]
    for each in exchanges:
        moment = each.created_at.astimezone().strftime("%Y-%m-%d %H:%M")
        parts.append(f"## You, {moment}\n\n{each.text}\n")
        if each.reply:
            cut = " (interrupted)" if each.status == "interrupted" else ""
            parts.append(f"## Mnemos{cut}\n\n{each.reply}\n")
    return "\n".join(parts)
