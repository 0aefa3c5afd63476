"""A digest of what a namespace holds: the same for two banks that hold the same, whatever they once held."""

import hashlib
import json
from typing import Any

from mnemos.store import branches, reading, words
from mnemos.store.core import Core, Namespace
from mnemos.store.words import Filter, to_us

_VERSION = 1


def content_digest(core: Core, name: str) -> str:
    """SHA-256, in hexadecimal, of every live memory in the order of writing: words, flags, dates, session,
    provenance and trace. Ids, which are random, stand as positions. It tells guessed words from others, so it
    belongs into no file and no receipt.
    """
    hashed = hashlib.sha256(f"mnemos content {_VERSION}\n".encode())
    namespace = core.find(name)
    # An unknown namespace holds what an empty one does.
    for line in [[], []] if namespace is None else _lines(core, namespace):
        hashed.update(json.dumps(line, sort_keys=True, separators=(",", ":")).encode() + b"\n")
    return hashed.hexdigest()


def _lines(core: Core, namespace: Namespace) -> list[Any]:
    with namespace.database.read() as connection:
        rows = words.select_rows(connection, Filter())
        known = {session.id: session.title for session in words.sessions(connection, namespace.name)}
        branched = branches.shape(connection)
        uses = {row.id: words.uses_of(connection, row.id) for row in rows}
    places = {row.id: index for index, row in enumerate(rows)}
    held = dict.fromkeys(row.session_id for row in rows if row.session_id is not None)
    sessions = {session_id: index for index, session_id in enumerate(held)}
    lines: list[Any] = [[known.get(session_id) for session_id in held]]
    lines.append(sorted(title or "" for session_id, title in known.items() if session_id not in held))
    if branched:
        lines.append(
            sorted(
                [known.get(each) or "", sessions.get(parent, -1), at]
                for each, (parent, at) in branched.items()
            )
        )
    for record in reading.records(core, namespace, rows):
        kv = reading.read_frames(core, namespace, [record.id], "kv")
        route = reading.read_frames(core, namespace, [record.id], "route")
        traces = [hashlib.sha256(payload).hexdigest() for payload in (*kv.values(), *route.values())]
        lines.append(
            {
                "words": [
                    record.kind,
                    record.text,
                    record.reply,
                    record.speaker,
                    record.title,
                    record.source,
                ],
                "tags": record.tags,
                "session": None if record.session_id is None else sessions[record.session_id],
                "created": to_us(record.created_at),
                "expires": None if record.expires_at is None else to_us(record.expires_at),
                "flags": [record.status, record.pinned, record.hidden],
                "trace": [record.trace_fingerprint, record.tokens, *traces],
                "uses": [
                    [places[use.memory_id], use.rank, use.score, dict(use.signals), use.attention, use.cited]
                    for use in uses[record.id]
                ],
            }
        )
    return lines
