"""The rows that archived memories become, and their durable write."""

import json
from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Connection, text

from mnemos.store import catalog, words
from mnemos.store.archive_records import ArchivedMemory, ArchivedSession
from mnemos.store.core import Core, Namespace
from mnemos.store.disk import check_room
from mnemos.store.payload import pack_text
from mnemos.store.records import UseRecord
from mnemos.store.words import Row, to_us
from mnemos.store.writing import allocate_keys, catalog_row, frame_group


def write_rows(
    core: Core,
    namespace: Namespace,
    batch: int,
    chosen: Sequence[tuple[Row, list[UseRecord]]],
    sessions: dict[str, ArchivedSession],
) -> int:
    """One durable group of rows; new sessions. The caller holds the writer's lock."""
    check_room(core.path, sum(2 * row.text_bytes + 2048 for row, _ in chosen))
    with namespace.database.read() as connection:
        ordinal = words.next_ordinal(connection)
    rows = [
        (replace(row, ordinal=ordinal + index, batch=batch, born=batch), uses)
        for index, (row, uses) in enumerate(chosen)
    ]
    slots, pages = allocate_keys(core, namespace, len(rows))
    with frame_group(core) as group:
        for (row, uses), slot in zip(rows, slots, strict=True):
            group.add("text", row.id, pack_text(row, uses), None if slot is None else slot.key)
        group.appender.sync()
        with namespace.database.write() as connection:
            words.insert_rows(connection, [row for row, _ in rows])
            for row, uses in rows:
                if uses:
                    words.set_uses(connection, row.id, uses)
            added = _add_sessions(connection, [row for row, _ in rows], sessions)
            words.set_batch(connection, batch)
        with core.catalog.write() as connection:
            catalog.add_memories(
                connection,
                [catalog_row(namespace, row, slot) for (row, _), slot in zip(rows, slots, strict=True)],
            )
            catalog.set_pages(connection, namespace.id, pages)
            group.record(connection)
            catalog.set_batch(connection, namespace.id, batch)
        namespace.committed = batch
    return added


def _add_sessions(connection: Connection, rows: Sequence[Row], sessions: dict[str, ArchivedSession]) -> int:
    """Sessions that the rows name and the namespace lacks, with their own dates; how many.

    One that is here keeps its title, even none: an erase may have taken it.
    """
    added = 0
    for row in {row.session_id: row for row in rows if row.session_id is not None}.values():
        known = sessions.get(row.session_id or "")
        added += connection.execute(
            text(
                "INSERT OR IGNORE INTO session (id, title, created_us, updated_us) VALUES (:id, :title, "
                ":created, :updated)"
            ),
            {
                "id": row.session_id,
                "title": known.title if known else None,
                "created": to_us(known.created_at) if known else row.created_us,
                "updated": to_us(known.updated_at) if known else row.created_us,
            },
        ).rowcount
    return added


def row_of(memory: ArchivedMemory, here: str, tag: bytes | None, reply: str | None) -> Row:
    """Without ordinal and batch, which the write gives it."""
    draft = memory.draft
    return Row(
        ordinal=0,
        id=here,
        kind=draft.kind,
        text=draft.text,
        reply=reply,
        speaker=draft.speaker,
        title=draft.title,
        source=draft.source,
        session_id=draft.session_id,
        created_us=catalog.now_us() if draft.created_at is None else to_us(draft.created_at),
        expires_us=None if draft.expires_at is None else to_us(draft.expires_at),
        tags=json.dumps(list(dict.fromkeys(draft.tags)), ensure_ascii=False),
        # Whoever was to answer an open exchange answers it where it came from.
        status="interrupted" if draft.status == "open" else draft.status,
        pinned=int(memory.pinned),
        hidden=int(memory.hidden),
        content_tag=tag,
        text_bytes=len(draft.text.encode()) + len((reply or "").encode()),
        batch=0,
        born=0,
    )
