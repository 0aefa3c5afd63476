"""What a text frame holds: a memory's words and all that is known of it, enough to rebuild its rows.

JSON, version 1: v, ordinal, kind, text, reply, speaker, title, source, session, created_us, expires_us,
tags, status, content (hexadecimal, or null), uses.
"""

import json
from collections.abc import Sequence
from typing import Any

from mnemos.store.frames import FrameError
from mnemos.store.records import UseRecord
from mnemos.store.words import Row

_VERSION = 1


def pack_text(row: Row, uses: Sequence[UseRecord]) -> bytes:
    body = {
        "v": _VERSION,
        "ordinal": row.ordinal,
        "kind": row.kind,
        "text": row.text,
        "reply": row.reply,
        "speaker": row.speaker,
        "title": row.title,
        "source": row.source,
        "session": row.session_id,
        "created_us": row.created_us,
        "expires_us": row.expires_us,
        "tags": json.loads(row.tags),
        "status": row.status,
        "content": None if row.content_tag is None else row.content_tag.hex(),
        "uses": [_use_to_json(use) for use in uses],
    }
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def unpack_text(payload: bytes, memory_id: str, *, batch: int = 0) -> tuple[Row, list[UseRecord]]:
    """The row as it was when the frame was written (never pinned or hidden). Raises FrameError."""
    try:
        body: dict[str, Any] = json.loads(payload)
        if body["v"] != _VERSION:
            raise FrameError("corrupt-frame", "the text is of a form this version does not know")
        text, reply = str(body["text"]), body["reply"]
        row = Row(
            ordinal=int(body["ordinal"]),
            id=memory_id,
            kind=body["kind"],
            text=text,
            reply=reply,
            speaker=body["speaker"],
            title=body["title"],
            source=body["source"],
            session_id=body["session"],
            created_us=int(body["created_us"]),
            expires_us=body["expires_us"],
            tags=json.dumps(body["tags"], ensure_ascii=False),
            status=body["status"],
            pinned=0,
            hidden=0,
            content_tag=None if body["content"] is None else bytes.fromhex(body["content"]),
            text_bytes=len(text.encode()) + len((reply or "").encode()),
            batch=batch,
            born=batch,
        )
        return row, [_use_from_json(use) for use in body["uses"]]
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, FrameError):
            raise
        raise FrameError("corrupt-frame", "the text of the frame can't be read") from None


def _use_to_json(use: UseRecord) -> list[Any]:
    return [use.memory_id, use.rank, use.score, dict(use.signals), use.attention, use.cited]


def _use_from_json(value: list[Any]) -> UseRecord:
    return UseRecord(value[0], value[1], value[2], value[3], value[4], value[5])
