"""Reading memories and their frames."""

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from sqlalchemy import Connection

from mnemos.errors import BankUnreadableError, NotFoundError
from mnemos.store import catalog, lookups, words
from mnemos.store.catalog import CatalogMemory, Placed
from mnemos.store.core import Core, Namespace
from mnemos.store.frames import FrameError, decode_frame, open_frame
from mnemos.store.ids import ID_CHARS
from mnemos.store.keypages import PageRow
from mnemos.store.owned_frames import owned_frames
from mnemos.store.records import FrameKind, MemoryRecord
from mnemos.store.words import Filter, Row, from_us
from mnemos.store.writing import bank_key, keys_of

Made = TypeVar("Made")

_WHOLE_NAMESPACE = 2000  # rows; above it one scan of the catalog beats many look-ups


def records(core: Core, namespace: Namespace, rows: Sequence[Row]) -> list[MemoryRecord]:
    """Rows of words joined with what the catalog knows of them."""
    if not rows:
        return []
    ids = [row.id for row in rows]
    if lookups.is_few(ids):
        known = lookups.memories(core.catalog, ids)
    else:
        with core.catalog.read() as connection:
            if len(rows) > _WHOLE_NAMESPACE:
                known = catalog.namespace_memories(connection, namespace.id)
            else:
                known = catalog.get_memories(connection, ids)
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
        tags=() if row.tags == "[]" else tuple(json.loads(row.tags)),
        status=row.status,  # type: ignore[arg-type]
        pinned=bool(row.pinned),
        hidden=bool(row.hidden),
        ordinal=row.ordinal,
        text_bytes=row.text_bytes,
        trace_bytes=known.trace_bytes if known else 0,
        tokens=known.tokens if known else 0,
        trace_fingerprint=known.trace_fingerprint if known else None,
        kv_bytes=known.kv_bytes if known else 0,
    )


def by_id(core: Core, name: str, ids: Sequence[str]) -> list[MemoryRecord]:
    """Memories by their whole ids, in that order. NotFoundError for an unknown namespace."""
    with core.reading():
        found = core.get(name)
        wanted = list(dict.fromkeys(ids))
        if lookups.is_few(wanted):
            rows = list(lookups.rows(found.database, wanted).values())
        else:
            with found.database.read() as connection:
                rows = words.select_rows(connection, Filter(ids=wanted))
        known = {record.id: record for record in records(core, found, rows)}
        return [known[memory_id] for memory_id in ids]


def present(core: Core, namespace: Namespace, ids: Sequence[str]) -> list[MemoryRecord]:
    """Those of the memories that are there, by their whole ids and in that order."""
    wanted = list(dict.fromkeys(ids))
    if lookups.is_few(wanted):
        rows = lookups.rows(namespace.database, wanted)
    else:
        with namespace.database.read() as connection:
            rows = {row.id: row for row in words.select_rows(connection, Filter(ids=wanted))}
    return records(core, namespace, [rows[memory_id] for memory_id in ids if memory_id in rows])


def get(core: Core, namespace: Namespace, prefix: str) -> MemoryRecord:
    is_whole = len(prefix) == ID_CHARS and prefix.isascii()
    row = lookups.row(namespace.database, prefix) if is_whole else None
    if row is None:
        with namespace.database.read() as connection:
            memory_id = words.full_id(connection, prefix)
            rows = words.select_rows(connection, Filter(ids=[memory_id]))
    return records(core, namespace, rows if row is None else [row])[0]


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
    return made_of_frames(core, namespace, ids, kind, bytes)


def made_of_frames(
    core: Core,
    namespace: Namespace,
    ids: Sequence[str],
    kind: FrameKind,
    make: Callable[[bytes | bytearray], Made],
    *,
    writable: bool = False,
    threads: int = 1,
) -> dict[str, Made]:
    """What `make` makes of each payload, in as many threads; as `read_frames` and `open_frame`."""
    places, keys = _look_up(core, namespace, ids, kind)
    if len(places) > 1:
        core.segments.expect((place.segment, place.start, place.length) for place in places)

    def read(place: Placed) -> tuple[str, Made | None]:
        payload = _read_moving(core, namespace, place, keys[place.owner], writable)
        return place.owner, None if payload is None else make(payload)

    if threads > 1 and len(places) > 1:
        with ThreadPoolExecutor(min(threads, len(places)), thread_name_prefix="mnemos-read") as pool:
            found = list(pool.map(read, places))
    else:
        found = [read(place) for place in places]
    return {owner: made for owner, made in found if made is not None}


def _read_moving(
    core: Core, namespace: Namespace, place: Placed, key: bytes | None, writable: bool
) -> bytes | bytearray | None:
    """The payload of a frame that a compaction may be moving meanwhile; None when it was erased.

    What lies in a place that was given up is zeros, another frame, or no file at all: never taken for it.
    """
    while True:
        try:
            data = core.segments.read(place.segment, place.start, place.length)
            return open_frame(data, place.kind, place.owner, key, writable=writable)
        except (FrameError, BankUnreadableError) as error:
            again, keys = _look_up(core, namespace, [place.owner], place.kind)
            if not again:
                return None
            if again[0].row == place.row:
                if _is_buried(namespace, place.owner):
                    return None
                raise _damaged(place, error) from None
            place, key = again[0], keys[place.owner]


def _is_buried(namespace: Namespace, memory_id: str) -> bool:
    """Whether an erase has begun on it: its row goes first, then its frames, then their places."""
    return lookups.row(namespace.database, memory_id) is None


def read_prefix(core: Core, fingerprint: str) -> bytes | None:
    last = 0
    while True:
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
        except (FrameError, BankUnreadableError) as error:
            if places[-1].row == last:
                raise _damaged(places[-1], error) from None
            last = places[-1].row


def _look_up(
    core: Core, namespace: Namespace, ids: Iterable[str], kind: FrameKind
) -> tuple[list[Placed], dict[str, bytes | None]]:
    wanted = list(ids)
    pages: dict[int, PageRow] = {}
    while True:
        with core.catalog.read() as connection:
            frames, memories = owned_frames(connection, wanted, kind)
            known = [memory for memory in memories if memory.namespace_id == namespace.id]
            try:
                keys = keys_of(namespace, connection, known)
            except NotFoundError:  # one of them is being erased
                keys = _keys_left(namespace, connection, known)
            except BankUnreadableError:
                before, pages = pages, catalog.pages_by_id(connection, namespace.id, _page_ids(known))
                if pages == before:
                    raise
                continue  # an erase moved a page of keys after this transaction began: look again
        places = sorted(frames, key=lambda frame: (frame.segment, frame.start))
        return [place for place in places if place.owner in keys], keys


def _keys_left(
    namespace: Namespace, connection: Connection, memories: Iterable[CatalogMemory]
) -> dict[str, bytes | None]:
    keys: dict[str, bytes | None] = {}
    for memory in memories:
        with suppress(NotFoundError):
            keys |= keys_of(namespace, connection, [memory])
    return keys


def _page_ids(memories: Iterable[CatalogMemory]) -> set[int]:
    return {memory.page_id for memory in memories if memory.page_id is not None}


def _decode(core: Core, place: Placed, key: bytes | None) -> bytes:
    return decode_frame(
        core.segments.read(place.segment, place.start, place.length), place.kind, place.owner, key
    )


def _damaged(place: Placed, error: Exception) -> BankUnreadableError:
    said = f"{error.kind}: {error}" if isinstance(error, FrameError) else str(error)
    return BankUnreadableError(
        f"The {place.kind} frame of memory {place.owner} can't be read ({said}). Run `mnemos bank verify`."
    )
