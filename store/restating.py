"""Changing what is known of a memory beside its words. The text frame says so too, so that rows rebuilt from
it agree.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import text

from mnemos.store import catalog, words
from mnemos.store.core import Core
from mnemos.store.disk import check_room
from mnemos.store.payload import pack_text
from mnemos.store.recovery import settle
from mnemos.store.words import Filter
from mnemos.store.writing import check_names, data_keys, frame_group, packed


def set_expiry(core: Core, name: str, prefix: str, expires_us: int | None) -> str:
    """The memory's id, once the change is durable; its trace stays. NotFoundError, AmbiguousIdError."""
    return _restate(core, name, prefix, expires_us=expires_us)


def set_tags(core: Core, name: str, prefix: str, tags: Sequence[str]) -> str:
    """As `set_expiry`, for its tags. InvalidTextError for one that can't be a tag."""
    check_names(tags)
    return _restate(core, name, prefix, tags=packed(tags))


def _restate(core: Core, name: str, prefix: str, **columns: Any) -> str:
    assigned = ", ".join(f"{column} = :{column}" for column in columns)
    with core.writing():
        namespace = core.get(name)
        batch = settle(core, namespace) + 1
        with namespace.database.read() as connection:
            memory_id = words.full_id(connection, prefix)
            (row,) = words.select_rows(connection, Filter(ids=[memory_id]))
            uses = words.uses_of(connection, memory_id)
        check_room(core.path, 2 * row.text_bytes + 4096)
        changed = replace(row, batch=batch, **columns)
        with core.catalog.read() as connection:
            key = data_keys(core, namespace, connection, [memory_id])[memory_id]
        with frame_group(core) as group:
            group.add("text", memory_id, pack_text(changed, uses), key)
            group.appender.sync()
            with namespace.database.write() as connection:
                connection.execute(
                    text(f"UPDATE memory SET {assigned}, batch = :batch WHERE id = :id"),
                    {**columns, "batch": batch, "id": memory_id},
                )
                words.set_batch(connection, batch)
            with core.catalog.write() as connection:
                catalog.retire_frames(connection, [memory_id], ("text",))
                group.record(connection)
                catalog.set_batch(connection, namespace.id, batch)
            namespace.committed = batch
        return memory_id
