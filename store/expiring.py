"""Changing when a memory expires. The text frame says so too, so that rows rebuilt from it agree."""

from dataclasses import replace

from sqlalchemy import text

from mnemos.store import catalog, words
from mnemos.store.core import Core
from mnemos.store.disk import check_room
from mnemos.store.payload import pack_text
from mnemos.store.recovery import settle
from mnemos.store.words import Filter
from mnemos.store.writing import data_keys, frame_group


def set_expiry(core: Core, name: str, prefix: str, expires_us: int | None) -> str:
    """The memory's id, once the change is durable; its trace stays. NotFoundError, AmbiguousIdError."""
    with core.writing():
        namespace = core.get(name)
        batch = settle(core, namespace) + 1
        with namespace.database.read() as connection:
            memory_id = words.full_id(connection, prefix)
            (row,) = words.select_rows(connection, Filter(ids=[memory_id]))
            uses = words.uses_of(connection, memory_id)
        check_room(core.path, 2 * row.text_bytes + 4096)
        changed = replace(row, expires_us=expires_us, batch=batch)
        with core.catalog.read() as connection:
            key = data_keys(core, namespace, connection, [memory_id])[memory_id]
        with frame_group(core) as group:
            group.add("text", memory_id, pack_text(changed, uses), key)
            group.appender.sync()
            with namespace.database.write() as connection:
                connection.execute(
                    text("UPDATE memory SET expires_us = :expires, batch = :batch WHERE id = :id"),
                    {"expires": expires_us, "batch": batch, "id": memory_id},
                )
                words.set_batch(connection, batch)
            with core.catalog.write() as connection:
                catalog.retire_frames(connection, [memory_id], ("text",))
                group.record(connection)
                catalog.set_batch(connection, namespace.id, batch)
            namespace.committed = batch
        return memory_id
