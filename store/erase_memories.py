"""The steps of an erase of memories. Each does nothing where it was done before."""

from collections.abc import Iterable
from dataclasses import replace

from sqlalchemy import Connection, bindparam, text

from mnemos.errors import BankError
from mnemos.store import branches, catalog, editing, indexing, rewriting, shards, words
from mnemos.store.core import Core, Namespace
from mnemos.store.intents import Intent, raise_epoch
from mnemos.store.payload import pack_text
from mnemos.store.recovery import reclaim_segments
from mnemos.store.selfcheck import ranges_of
from mnemos.store.words import Filter, Row
from mnemos.store.writing import allocate_keys, catalog_row, frame_group


def rewrite(core: Core, intent: Intent) -> None:
    """The user's own words of each dependant, as a new memory under a new data key."""
    if not intent.rewritten:
        return
    namespace = _namespace(core, intent)
    with core.catalog.read() as connection:
        done = catalog.get_memories(connection, intent.rewritten.values())
    todo = {old: new for old, new in intent.rewritten.items() if new not in done}
    if not todo:
        return
    with namespace.database.read() as connection:
        rows = [
            _without_reply(row, todo[row.id]) for row in words.select_rows(connection, Filter(ids=list(todo)))
        ]
    slots, pages = allocate_keys(core, namespace, len(rows))
    with frame_group(core) as group:
        for row, slot in zip(rows, slots, strict=True):
            group.add("text", row.id, pack_text(row, ()), None if slot is None else slot.key)
        group.start_sync(namespace)
        with core.catalog.write() as connection:
            catalog.add_memories(
                connection, [catalog_row(namespace, row, slot) for row, slot in zip(rows, slots, strict=True)]
            )
            catalog.set_pages(connection, namespace.id, pages)
            group.record(connection)


def _without_reply(row: Row, memory_id: str) -> Row:
    return replace(row, id=memory_id, reply=None, text_bytes=len(row.text.encode()))


def bury(core: Core, intent: Intent) -> None:
    """From here on no search, list or provenance shows what is going: its rows are gone, index included."""
    namespace = _namespace(core, intent)
    with namespace.database.write() as connection:
        shards.take_out(core, namespace, connection, intent.doomed)
        for part in catalog.chunks(intent.doomed):
            _on_ids(connection, "DELETE FROM use WHERE reply_id IN :ids OR memory_id IN :ids", part)
        edited = [(old, intent.rewritten[old]) for old in intent.edited]
        editing.put_words(core, namespace, connection, edited)
        for old, new in intent.rewritten.items():
            connection.execute(
                text(
                    "UPDATE memory SET id = :new, reply = NULL, text_bytes = length(CAST(text AS BLOB)) "
                    "WHERE id = :old"
                ),
                {"old": old, "new": new},
            )
        branches.remove_sessions(connection, intent.body["ended"])
        _on_ids(connection, "UPDATE session SET title = NULL WHERE id IN :ids", intent.body["retitled"])
        # In one transaction, or a reader could see scores that what is buried still weighs on.
        indexing.remove_rows(connection, intent.selected)
        branches.lower_branch_points(connection)
    raise_epoch(core, intent)


def clear_pages(core: Core, intent: Intent) -> None:
    """Rows that an earlier version left marked as erased, copies that lie where rows were moved from, and
    files of vectors that others took the place of.
    """
    shards.sweep(core, _namespace(core, intent))
    database = _namespace(core, intent).database
    with database.read() as connection:
        is_left = connection.execute(text("SELECT 1 FROM memory WHERE erased = 1 LIMIT 1")).first()
    if is_left:
        with database.write() as connection:
            indexing.remove_rows(connection, intent.selected)
    is_done = rewriting.rewrite_small(core, _namespace(core, intent))
    intent.body["page_copies"] = "cleared" if is_done else "due"


def destroy_keys(core: Core, intent: Intent) -> None:
    namespace = _namespace(core, intent)
    if namespace.keys is None:
        return
    with core.catalog.read() as connection:
        pages = catalog.pages(connection, namespace.id)
        memories = catalog.get_memories(connection, intent.doomed)
    slots: dict[int, set[int]] = {}
    for memory in memories.values():
        if memory.page_id is not None and memory.slot is not None:
            slots.setdefault(memory.page_id, set()).add(memory.slot)
    if slots:
        moved = namespace.keys.shred(pages, slots)
        with core.catalog.write() as connection:
            catalog.set_pages(connection, namespace.id, moved)
            pages = catalog.pages(connection, namespace.id)
    namespace.keys.clear(pages)


def zero_frames(core: Core, intent: Intent) -> None:
    reclaim_segments(core)  # a killed writer's tail may hold frames of these memories, too
    for number, ranges in ranges_of(intent.body).items():
        core.segments.zero(number, ranges)


def remove_rows(core: Core, intent: Intent) -> None:
    with core.catalog.write() as connection:
        catalog.remove_frames_of(connection, intent.doomed)
        catalog.remove_memories(connection, intent.doomed)
        if intent.body["page_copies"] == "due":
            rewriting.mark_due(connection, intent.namespace_id)


def _namespace(core: Core, intent: Intent) -> Namespace:
    namespace = core.by_id(intent.namespace_id)
    if namespace is None:
        raise BankError(
            f"Erase {intent.id} names a namespace that the catalog lacks. Run `mnemos bank verify`."
        )
    return namespace


def _on_ids(connection: Connection, statement: str, ids: Iterable[str]) -> None:
    connection.execute(text(statement).bindparams(bindparam("ids", expanding=True)), {"ids": list(ids)})
