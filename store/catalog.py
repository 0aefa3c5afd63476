"""Reading and writing the rows of `catalog.db`. Every function takes a connection, so that they compose."""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, text, update
from sqlalchemy.dialects.sqlite import insert as upsert

from mnemos.store import catalog_schema as schema
from mnemos.store.database import rows_of
from mnemos.store.frames import KIND_CODES, KIND_NAMES
from mnemos.store.keypages import PageRow
from mnemos.store.records import FrameKind

_CHUNK = 10_000  # bound values in one statement


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a frame lies, and the SHA-256 of its payload as stored."""

    owner: str
    kind: FrameKind
    segment: int
    start: int
    length: int
    digest: bytes
    fingerprint: str | None = None
    live: bool = True
    row: int = 0


@dataclass(frozen=True, slots=True)
class CatalogMemory:
    id: str
    namespace_id: str
    page_id: int | None
    slot: int | None
    is_open: bool
    trace_fingerprint: str | None
    tokens: int
    trace_bytes: int  # of KV and routing frames
    kv_bytes: int  # of the KV frame; 0 where the memory is faint or has no trace


@dataclass(frozen=True, slots=True)
class NamespaceRow:
    id: str
    name_box: bytes
    key_box: bytes
    batch: int
    state: str


def now_us() -> int:
    """Microseconds of Unix time."""
    return time.time_ns() // 1000


def chunks(values: Iterable[str]) -> Iterator[list[str]]:
    """Lists short enough to be bound in one statement."""
    held = list(values)
    for start in range(0, len(held), _CHUNK):
        yield held[start : start + _CHUNK]


def get_meta(connection: Connection, key: str) -> bytes | None:
    value: bytes | None = connection.execute(
        select(schema.meta.c.value).where(schema.meta.c.key == key)
    ).scalar_one_or_none()
    return value


def set_meta(connection: Connection, key: str, value: bytes) -> None:
    statement = upsert(schema.meta).values(key=key, value=value)
    connection.execute(statement.on_conflict_do_update(index_elements=["key"], set_={"value": value}))


def erase_epoch(connection: Connection) -> int:
    return int(get_meta(connection, "erase_epoch") or b"0")


def raise_epoch(connection: Connection) -> int:
    epoch = erase_epoch(connection) + 1
    set_meta(connection, "erase_epoch", b"%d" % epoch)
    return epoch


def set_setting(connection: Connection, key: str, value: str) -> None:
    statement = upsert(schema.settings).values(key=key, value=value)
    connection.execute(statement.on_conflict_do_update(index_elements=["key"], set_={"value": value}))


# -- namespaces


def live_namespaces(connection: Connection) -> list[NamespaceRow]:
    c = schema.namespaces.c
    rows = connection.execute(
        select(c.id, c.name_box, c.key_box, c.batch, c.state)
        .where(c.state == "live")
        .order_by(c.created_us, c.id)
    )
    return [NamespaceRow(*row) for row in rows]


def namespace_ids(connection: Connection) -> set[str]:
    """Of every namespace, one that is being erased among them."""
    return set(connection.execute(select(schema.namespaces.c.id)).scalars())


def namespace_by_id(connection: Connection, namespace_id: str) -> NamespaceRow | None:
    c = schema.namespaces.c
    row = connection.execute(
        select(c.id, c.name_box, c.key_box, c.batch, c.state).where(c.id == namespace_id)
    ).one_or_none()
    return None if row is None else NamespaceRow(*row)


def add_namespace(
    connection: Connection, namespace_id: str, name_tag: bytes, name_box: bytes, key_box: bytes
) -> None:
    connection.execute(
        insert(schema.namespaces).values(
            id=namespace_id,
            name_tag=name_tag,
            name_box=name_box,
            key_box=key_box,
            batch=0,
            state="live",
            created_us=now_us(),
        )
    )


def set_batch(connection: Connection, namespace_id: str, batch: int) -> None:
    connection.execute(
        update(schema.namespaces).where(schema.namespaces.c.id == namespace_id).values(batch=batch)
    )


# -- memories


def add_memories(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Rows of id, namespace_id, page_id, slot, is_open."""
    if rows:
        connection.exec_driver_sql(
            "INSERT INTO memories (id, namespace_id, page_id, slot, is_open, trace_fingerprint, tokens, "
            "trace_bytes) VALUES (?, ?, ?, ?, ?, NULL, 0, 0)",
            [(row["id"], row["namespace_id"], row["page_id"], row["slot"], row["is_open"]) for row in rows],
        )


def get_memories(connection: Connection, ids: Iterable[str]) -> dict[str, CatalogMemory]:
    found: dict[str, CatalogMemory] = {}
    for part in chunks(ids):
        for row in connection.execute(select(schema.memories).where(schema.memories.c.id.in_(part))):
            found[row[0]] = _memory(row)
    return found


def namespace_memories(connection: Connection, namespace_id: str) -> dict[str, CatalogMemory]:
    rows = connection.execute(select(schema.memories).where(schema.memories.c.namespace_id == namespace_id))
    return {row[0]: _memory(row) for row in rows}


def _memory(row: Any) -> CatalogMemory:
    memory_id, namespace_id, page_id, slot, is_open, fingerprint, tokens, trace_bytes, kv_bytes = row
    return CatalogMemory(
        memory_id, namespace_id, page_id, slot, bool(is_open), fingerprint, tokens, trace_bytes, kv_bytes
    )


def remove_memories(connection: Connection, ids: Iterable[str]) -> None:
    for part in chunks(ids):
        connection.execute(delete(schema.memories).where(schema.memories.c.id.in_(part)))


# -- frames and segments


def add_frames(connection: Connection, placed: Iterable[Placed]) -> None:
    rows = [
        (
            frame.owner,
            KIND_CODES[frame.kind],
            frame.segment,
            frame.start,
            frame.length,
            frame.digest,
            int(frame.live),
            frame.fingerprint,
        )
        for frame in placed
    ]
    if rows:
        connection.exec_driver_sql(
            "INSERT INTO frames (owner, kind, segment, start, length, digest, live, fingerprint) VALUES "
            "(?, ?, ?, ?, ?, ?, ?, ?)",
            rows,
        )


def frames_of(connection: Connection, owners: Iterable[str], kind: FrameKind | None = None) -> list[Placed]:
    """Live frames, and dead ones too when no kind is named."""
    c = schema.frames.c
    found: list[Placed] = []
    for part in chunks(owners):
        query = select(schema.frames).where(c.owner.in_(part))
        if kind is not None:
            query = query.where(c.kind == KIND_CODES[kind], c.live == 1)
        found += [_placed(row) for row in connection.execute(query)]
    return found


def new_routes(
    connection: Connection, namespace_id: str, after: int, most: int | None = None
) -> tuple[int, list[str]]:
    """The highest row number of a frame, and owners of live route frames of a namespace above `after`; of
    more than `most` the first, with the row number of the last of these.
    """
    newest = int(connection.execute(text("SELECT coalesce(max(id), 0) FROM frames")).scalar_one())
    if newest == after:
        return newest, []
    # Left to itself SQLite looks through the whole namespace, however few are asked for.
    join = "JOIN" if most is None and not after else "CROSS JOIN"
    query = text(
        f"SELECT f.owner, f.id FROM frames f {join} memories m ON m.id = f.owner WHERE f.id > :after AND "
        "f.kind = :kind AND f.live = 1 AND m.namespace_id = :namespace ORDER BY f.id LIMIT :most"
    )
    values = {"after": after, "kind": KIND_CODES["route"], "namespace": namespace_id}
    found = connection.execute(query, {**values, "most": -1 if most is None else most}).all()
    return found[-1][1] if found and len(found) == most else newest, [row[0] for row in found]


def dead_frames(connection: Connection) -> list[Placed]:
    query = select(schema.frames).where(text("frames.live = 0"))
    return [_placed(row) for row in connection.execute(query)]


def frames_by_row(connection: Connection, rows: Iterable[int]) -> list[Placed]:
    """Of these row numbers, in the order they lie in."""
    query = select(schema.frames).where(schema.frames.c.id.in_(list(rows)))
    return sorted(
        (_placed(row) for row in connection.execute(query)), key=lambda frame: (frame.segment, frame.start)
    )


def segment_frames(connection: Connection, segment: int) -> list[Placed]:
    """Of one segment, in the order they lie in."""
    c = schema.frames.c
    query = select(schema.frames).where(c.segment == segment).order_by(c.start)
    return [_placed(row) for row in connection.execute(query)]


def count_live_frames(connection: Connection) -> int:
    return int(connection.execute(text("SELECT count(*) FROM frames WHERE live = 1")).scalar_one())


def namespace_frames(connection: Connection, namespace_id: str) -> list[Placed]:
    """Every frame of every memory of a namespace, dead ones too."""
    mine = select(schema.memories.c.id).where(schema.memories.c.namespace_id == namespace_id)
    return [
        _placed(row)
        for row in connection.execute(select(schema.frames).where(schema.frames.c.owner.in_(mine)))
    ]


def namespace_places(connection: Connection, namespace_id: str) -> Iterator[tuple[int, int, int, bytes]]:
    """(segment, start, length, digest) of every frame of a namespace, dead ones too, as they lie."""
    c = schema.frames.c
    mine = select(schema.memories.c.id).where(schema.memories.c.namespace_id == namespace_id)
    query = select(c.segment, c.start, c.length, c.digest).where(c.owner.in_(mine))
    for part in connection.execute(query.order_by(c.segment, c.start)).partitions(10_000):
        yield from ((row[0], row[1], row[2], row[3]) for row in part)


def remove_namespace(connection: Connection, namespace_id: str) -> None:
    """A namespace with its memories, frames and key pages."""
    mine = select(schema.memories.c.id).where(schema.memories.c.namespace_id == namespace_id)
    connection.execute(delete(schema.frames).where(schema.frames.c.owner.in_(mine)))
    connection.execute(delete(schema.memories).where(schema.memories.c.namespace_id == namespace_id))
    connection.execute(delete(schema.key_pages).where(schema.key_pages.c.namespace_id == namespace_id))
    connection.execute(delete(schema.namespaces).where(schema.namespaces.c.id == namespace_id))


def retire_rows(connection: Connection, rows: Iterable[int]) -> None:
    """As `retire_frames`, of rows."""
    for row in rows:
        connection.execute(text("UPDATE frames SET live = 0 WHERE id = :row"), {"row": row})


def retire_frames(connection: Connection, owners: Iterable[str], kinds: Iterable[FrameKind]) -> None:
    """Marks frames as superseded: they are cleared later, or with their memory."""
    codes = [KIND_CODES[kind] for kind in kinds]
    c = schema.frames.c
    for part in chunks(owners):
        connection.execute(
            update(schema.frames).where(c.owner.in_(part), c.kind.in_(codes), c.live == 1).values(live=0)
        )


def remove_frames(connection: Connection, rows: Iterable[int]) -> None:
    connection.execute(
        text("DELETE FROM frames WHERE id = :row"), [{"row": row} for row in rows] or [{"row": -1}]
    )


def remove_frames_of(connection: Connection, owners: Iterable[str]) -> None:
    for part in chunks(owners):
        connection.execute(delete(schema.frames).where(schema.frames.c.owner.in_(part)))


def _placed(row: Any) -> Placed:
    number, owner, kind, segment, start, length, digest, live, fingerprint = row
    return Placed(
        owner, KIND_NAMES[kind], segment, start, length, digest, fingerprint, live=bool(live), row=number
    )


def segment_ends(connection: Connection) -> dict[int, int]:
    """Where each segment's committed bytes end."""
    return {row.number: row.ends_at for row in connection.execute(select(schema.segments))}


def newest_segment(connection: Connection) -> tuple[int, int]:
    """Number and end of the segment that takes new frames; (0, 0) when there is none."""
    c = schema.segments.c
    row = connection.execute(select(c.number, c.ends_at).order_by(c.number.desc()).limit(1)).one_or_none()
    return (0, 0) if row is None else (row[0], row[1])


def set_segment_ends(connection: Connection, ends: dict[int, int]) -> None:
    for number, end in ends.items():
        statement = upsert(schema.segments).values(number=number, ends_at=end, sealed=0)
        connection.execute(statement.on_conflict_do_update(index_elements=["number"], set_={"ends_at": end}))


# -- key pages


def pages(connection: Connection, namespace_id: str) -> list[PageRow]:
    query = "SELECT id, region, used, length, wrapped FROM key_pages WHERE namespace_id = ?"
    return [PageRow(*row) for row in rows_of(connection, query, (namespace_id,))]


def pages_by_id(connection: Connection, namespace_id: str, ids: Iterable[int]) -> dict[int, PageRow]:
    query = (
        "SELECT id, region, used, length, wrapped FROM key_pages WHERE namespace_id = ? "
        "AND id IN (SELECT value FROM json_each(?))"
    )
    found = rows_of(connection, query, (namespace_id, json.dumps(list(ids))))
    return {row[0]: PageRow(*row) for row in found}


def set_pages(connection: Connection, namespace_id: str, rows: Iterable[PageRow]) -> None:
    for row in rows:
        values = {"region": row.region, "used": row.used, "length": row.length, "wrapped": row.wrapped}
        statement = upsert(schema.key_pages).values(namespace_id=namespace_id, id=row.id, **values)
        connection.execute(
            statement.on_conflict_do_update(index_elements=["namespace_id", "id"], set_=values)
        )


def remove_unused_pages(connection: Connection, namespace_id: str) -> None:
    """Rows of pages that no memory's key lies in."""
    c = schema.key_pages.c
    used = select(schema.memories.c.page_id).where(
        schema.memories.c.namespace_id == namespace_id, schema.memories.c.page_id.is_not(None)
    )
    connection.execute(delete(schema.key_pages).where(c.namespace_id == namespace_id, c.id.not_in(used)))


# -- sums


def sums(connection: Connection, namespace_id: str | None) -> tuple[int, int, int]:
    """Memories, tokens and trace bytes."""
    c = schema.memories.c
    query = select(
        func.count(), func.coalesce(func.sum(c.tokens), 0), func.coalesce(func.sum(c.trace_bytes), 0)
    )
    query = query.select_from(schema.memories)
    if namespace_id is not None:
        query = query.where(c.namespace_id == namespace_id)
    row = connection.execute(query).one()
    return int(row[0]), int(row[1]), int(row[2])


def untraced(connection: Connection, namespace_id: str | None) -> int:
    """Finished memories without any trace."""
    c = schema.memories.c
    query = select(func.count()).select_from(schema.memories).where(text("memories.is_open = 0"))
    query = query.where(c.trace_fingerprint.is_(None))
    if namespace_id is not None:
        query = query.where(c.namespace_id == namespace_id)
    return int(connection.execute(query).scalar_one())


def frame_bytes(connection: Connection, namespace_id: str | None) -> int:
    """Bytes of frames, those that were superseded and not yet cleared among them."""
    query = select(func.coalesce(func.sum(schema.frames.c.length), 0))
    if namespace_id is not None:
        mine = select(schema.memories.c.id).where(schema.memories.c.namespace_id == namespace_id)
        query = query.where(schema.frames.c.owner.in_(mine))
    return int(connection.execute(query).scalar_one())
