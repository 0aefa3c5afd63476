"""Banks and archives that the tests of archives are made of."""

import hashlib
import io
import json
import os
import struct
from datetime import UTC, datetime
from typing import Any

import zstandard

from mnemos.memory.bank import MemoryBank
from mnemos.memory.records import Memory
from mnemos.store.records import MemoryDraft, TraceDraft, UseRecord

PAST = datetime(2024, 2, 29, 23, 59, 59, 123456, tzinfo=UTC)


def kv_payload(tokens: int, size: int = 5000) -> bytes:
    return struct.pack("<4sBHHHHI", b"MKV1", 4, 2, 1, 8, 1, tokens) + os.urandom(size)


def route_payload(tokens: int) -> bytes:
    return struct.pack("<4sHHHHI", b"MRT1", 2, 8, 16, 1, tokens) + os.urandom(200)


def fill(bank: MemoryBank) -> dict[str, Memory]:
    """A fact, a reply made with it in a session, a pinned note with every field, and another namespace's."""
    fact = bank.remember("My sister Clara works as a nurse.", tags=["family", "work"])
    session = bank.create_session(title="evening talk")
    asked = bank.begin_exchange("What does she do?", namespace="default", session_id=session.id)
    bank.store.complete(
        "default",
        asked.id,
        "Clara is a nurse.",
        uses=[UseRecord(fact.id, 1, 0.75, {"lexical": 2.5}, 0.4, True)],
    )
    draft = MemoryDraft(
        'Ünïcode \u2028 "quotes" \\ and\nlines \x00 \U0001f6b2',
        kind="tool",
        speaker="Tool",
        title="A title",
        source="/some/where.txt",
        tags=["späte", "x"],
        created_at=PAST,
        expires_at=datetime(2999, 1, 1, tzinfo=UTC),
    )
    note = bank.remember_many([draft])[0]
    bank.pin(note.id)
    theirs = bank.remember("The boat is green.", namespace="acme/bob")
    return {"fact": fact, "asked": asked, "note": note, "theirs": theirs}


def content(bank: MemoryBank) -> dict[str, Any]:
    """All that people see of a bank, by namespace."""
    return {
        name: {
            "memories": [
                memory.model_dump(exclude={"fidelity", "trace_bytes", "tokens"})
                for memory in bank.list(name, include_hidden=True, newest_first=False)
            ],
            "uses": {
                memory.id: [
                    (use.memory.id, use.rank, use.score, dict(use.signals), use.attention, use.cited)
                    for use in bank.why(memory.id, namespace=name)
                ]
                for memory in bank.list(name)
            },
            "sessions": bank.sessions(name),
            "found": bank.store.lexical(name, "nurse sister boat späte", 10),
        }
        for name in bank.namespaces()
    }


def archive_of(bank: MemoryBank, **more: Any) -> bytes:
    out = io.BytesIO()
    bank.export(out, **more)
    return out.getvalue()


def lines_of(archive: bytes) -> list[dict[str, Any]]:
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(archive)) as reader:
        return [json.loads(line) for line in reader.read().splitlines()]


def archive_from(lines: list[dict[str, Any]]) -> bytes:
    """An archive of these lines, with true digests."""
    digest, raw = hashlib.sha256(), b""
    for line in lines:
        if "sha256" in line and line["type"] in ("check", "end"):
            line = line | {"sha256": digest.hexdigest()}
        data = json.dumps(line).encode() + b"\n"
        digest.update(data)
        raw += data
    return zstandard.compress(raw)


def put_trace(bank: MemoryBank, memory: Memory, fingerprint: str = "f1", tokens: int = 7) -> TraceDraft:
    draft = TraceDraft(memory.id, fingerprint, tokens, kv_payload(tokens), route_payload(tokens))
    bank.store.put_traces(memory.namespace, [draft])
    return draft
