"""Where the frames of many memories lie, with what their keys are found by: one look into the catalog."""

import json
from collections.abc import Iterable

from sqlalchemy import Connection

from mnemos.store.catalog import CatalogMemory, Placed
from mnemos.store.database import rows_of
from mnemos.store.frames import KIND_CODES
from mnemos.store.records import FrameKind

_QUERY = (
    "SELECT f.id, f.owner, f.segment, f.start, f.length, f.digest, f.fingerprint, m.namespace_id, m.page_id, "
    "m.slot, m.is_open, m.trace_fingerprint, m.tokens, m.trace_bytes, m.kv_bytes FROM json_each(?) wanted "
    "CROSS JOIN frames f ON f.owner = wanted.value CROSS JOIN memories m ON m.id = f.owner "
    "WHERE f.kind = ? AND f.live = 1"
)


def owned_frames(
    connection: Connection, ids: Iterable[str], kind: FrameKind
) -> tuple[list[Placed], list[CatalogMemory]]:
    """The live frames of a kind of those memories that have one, and the memories."""
    frames: list[Placed] = []
    memories: list[CatalogMemory] = []
    for row in rows_of(connection, _QUERY, (json.dumps(list(ids)), KIND_CODES[kind])):
        number, owner, segment, start, length, digest, fingerprint = row[:7]
        frames.append(Placed(owner, kind, segment, start, length, digest, fingerprint, row=number))
        namespace_id, page_id, slot, is_open, made_by, tokens, trace_bytes, kv_bytes = row[7:]
        memories.append(
            CatalogMemory(
                owner, namespace_id, page_id, slot, bool(is_open), made_by, tokens, trace_bytes, kv_bytes
            )
        )
    return frames, memories
