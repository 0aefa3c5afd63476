"""Reading memories and their frames."""

import json
from collections.abc import Iterable, Sequence

from mnemos.errors import BankUnreadableError, NotFoundError
from mnemos.store import catalog, words
from mnemos.store.catalog import CatalogMemory, Placed
from mnemos.store.core import Core, Namespace
from mnemos.store.frames import FrameError, decode_frame
from mnemos.store.records import FrameKind, MemoryRecord
from mnemos.store.words import Filter, Row, from_us
from mnemos.store.writing import bank_key, keys_of

_WHOLE_NAMESPACE = 2000  # rows; above it one scan of the catalog beats many look-ups


def records(core: Core, namespace: Namespace, rows: Sequence[Row]) -> list[MemoryRecord]:
    """Rows of words joined with what the catalog knows of them."""
    if not rows:
        return []
    with core.catalog.read() as connection:
        if len(rows) > _WHOLE_NAMESPACE:
            known = catalog.namespace_memories(connection, namespace.id)
        else:
            known = catalog.get_memories(connection, [row.id for row in rows])
    return [_record(namespace.name, row, known.get(row.id)) for row in rows]


def new_record(name: str, row: Row) -> MemoryRecord:
    """The record of a row that was written just now: it has no trace yet."""
    return _record(name, row, None)


def _record(name: str, row: Row, known: CatalogMemory | None) -> MemoryRecord:
    return MemoryRecord(
        id=row.id,
        namespace=name,
        kind=row.kind,  # type: ignore[arg-type]
        text=row.text,
        reply=row.reply,
        speaker=row.speaker,
        title=row.title,
        source=row.source,
        session_id=row.session_id,
        created_at=from_us(row.created_us),
        expires_at=None if row.expires_us is None else from_us(row.expires_us),
        tags=tuple(json.loads(row.tags)),
        status=row.status,  # type: ignore[arg-type]
        pinned=bool(row.pinned),
        hidden=bool(row.hidden),
        ordinal=row.ordinal,
        text_bytes=row.text_bytes,
        trace_bytes=known.trace_bytes if known else 0,
        tokens=known.tokens if known else 0,
        trace_fingerprint=known.trace_fingerprint if known else None,
    )


def get(core: Core, namespace: Namespace, prefix: str) -> MemoryRecord:
    with namespace.database.read() as connection:
        memory_id = words.full_id(connection, prefix)
        rows = words.select_rows(connection, Filter(ids=[memory_id]))
    return records(core, namespace, rows)[0]


def traced_ids(core: Core, namespace: Namespace) -> list[str]:
    """Ids of the memories that have a trace, hidden ones too."""
    with core.catalog.read() as connection:
        known = catalog.namespace_memories(connection, namespace.id)
    return [memory.id for memory in known.values() if memory.trace_fingerprint is not None]


def read_frame(core: Core, namespace: Namespace, memory_id: str, kind: FrameKind) -> bytes:
    """The payload of a memory's live frame. NotFoundError, BankUnreadableError."""
    found = read_frames(core, namespace, [memory_id], kind)
    if memory_id not in found:
        raise NotFoundError(
            f"Memory {memory_id} has no {kind} frame; `pending_traces` lists those to encode."
        )
    return found[memory_id]


def read_frames(core: Core, namespace: Namespace, ids: Sequence[str], kind: FrameKind) -> dict[str, bytes]:
    """The payloads of those that have such a frame. BankUnreadableError when one is damaged."""
    places, keys = _look_up(core, namespace, ids, kind)
    found: dict[str, bytes] = {}
    for place in places:
        try:
            found[place.owner] = _decode(core, place, keys[place.owner])
        except (FrameError, BankUnreadableError) as error:
            again, fresh_keys = _look_up(core, namespace, [place.owner], kind)
            if not again:
                continue
            if (again[0].segment, again[0].start) == (place.segment, place.start):
                raise _damaged(place, error) from None
            try:
                found[place.owner] = _decode(core, again[0], fresh_keys[place.owner])
            except FrameError as second:
                raise _damaged(again[0], second) from None
    return found


def read_prefix(core: Core, fingerprint: str) -> bytes | None:
    with core.catalog.read() as connection:
        key = bank_key(core, connection)
        places = [
            frame
            for frame in catalog.frames_of(connection, [core.bank_id], "prefix")
            if frame.fingerprint == fingerprint
        ]
    if not places:
        return None
    try:
        return _decode(core, places[-1], key)
    except FrameError as error:
        raise _damaged(places[-1], error) from None


def _look_up(
    core: Core, namespace: Namespace, ids: Iterable[str], kind: FrameKind
) -> tuple[list[Placed], dict[str, bytes | None]]:
    with core.catalog.read() as connection:
        places = sorted(
            catalog.frames_of(connection, ids, kind), key=lambda frame: (frame.segment, frame.start)
        )
        known = catalog.get_memories(connection, [place.owner for place in places])
        mine = {owner: memory for owner, memory in known.items() if memory.namespace_id == namespace.id}
        try:
            return [place for place in places if place.owner in mine], keys_of(
                namespace, connection, mine.values()
            )
        except NotFoundError:
            return [], {}


def _decode(core: Core, place: Placed, key: bytes | None) -> bytes:
    return decode_frame(
        core.segments.read(place.segment, place.start, place.length), place.kind, place.owner, key
    )


def _damaged(place: Placed, error: Exception) -> BankUnreadableError:
    said = f"{error.kind}: {error}" if isinstance(error, FrameError) else str(error)
    return BankUnreadableError(
        f"The {place.kind} frame of memory {place.owner} can't be read ({said}). Run `mnemos bank verify`."
    )
