"""Taking back what a crash left half-done, so that an open bank is always whole."""

import os
from contextlib import suppress
from dataclasses import replace

from sqlalchemy import bindparam, select, text

from mnemos.errors import BankLockedError, BankUnreadableError
from mnemos.store import catalog, catalog_schema, shards, words
from mnemos.store.core import Core, Namespace
from mnemos.store.disk import fsync_dir, zero_and_unlink
from mnemos.store.frames import FrameError, decode_frame
from mnemos.store.ids import is_id
from mnemos.store.payload import unpack_text

REBUILT = ".rebuilt"  # a namespace's database on its way to be made anew
MENDED = ".mended"  # a whole one that takes the place of the damaged one


def recover(core: Core) -> None:
    """Cuts unfinished tails, removes files that no row knows of, clears superseded frames.

    Skipped while another process writes: it has done this when it opened the bank, and the tail is its own.
    """
    core.on_open = lambda namespace: settle_if_torn(core, namespace)
    with suppress(BankLockedError), core.lock.without_waiting():
        reclaim_segments(core)
        adopt_rebuilt(core)
        reclaim_files(core)
        clear_dead_frames(core)


def settle_if_torn(core: Core, namespace: Namespace) -> None:
    """`settle`, but without the lock where there is nothing to do, and not while a live process is at it.
    Files of vectors that no row knows of go too.
    """
    with namespace.database.read() as connection:
        reached = words.batch(connection)
    if reached > _committed(core, namespace):
        with suppress(BankLockedError), core.lock:
            settle(core, namespace)
    if shards.strays(core, namespace):
        with suppress(BankLockedError), core.lock.without_waiting():
            shards.sweep(core, namespace)


def settle(core: Core, namespace: Namespace) -> int:
    """Takes back a write that reached the namespace database but not the catalog.

    Returns the number of the last write that counts. The caller holds the writer's lock.
    """
    committed = _committed(core, namespace)
    with namespace.database.read() as connection:
        reached = words.batch(connection)
    namespace.committed = max(namespace.committed, committed)
    if reached <= committed:
        return committed
    with namespace.database.read() as connection:
        query = text("SELECT id, pinned, hidden FROM memory WHERE batch > :batch")
        touched = {row[0]: (row[1], row[2]) for row in connection.execute(query, {"batch": committed})}
    restored = []
    with core.catalog.read() as connection:
        known = catalog.get_memories(connection, touched)
        frames = {frame.owner: frame for frame in catalog.frames_of(connection, known, "text")}
    for memory_id, memory in known.items():
        frame = frames.get(memory_id)
        if frame is None:
            raise BankUnreadableError(
                f"Memory {memory_id} has no text frame. Run `mnemos bank verify --repair`."
            )
        key = memory_key(core, namespace, memory)
        data = core.segments.read(frame.segment, frame.start, frame.length)
        try:
            row, uses = unpack_text(decode_frame(data, "text", memory_id, key), memory_id, batch=committed)
        except FrameError as error:
            raise BankUnreadableError(
                f"A write of namespace {namespace.id} was cut off and can't be taken back ({error}). Run "
                "`mnemos bank verify --repair`."
            ) from None
        pinned, hidden = touched[memory_id]
        restored.append((replace(row, pinned=pinned, hidden=hidden), uses))
    with namespace.database.write() as connection:
        for table, column in (("memory", "id"), ("use", "reply_id")):
            doomed = text(f"DELETE FROM {table} WHERE {column} IN :ids")
            for part in catalog.chunks(touched):
                connection.execute(doomed.bindparams(bindparam("ids", expanding=True)), {"ids": part})
        words.insert_rows(connection, [row for row, _ in restored])
        for row, uses in restored:
            words.set_uses(connection, row.id, uses)
        words.set_batch(connection, committed)
    return committed


def memory_key(core: Core, namespace: Namespace, memory: catalog.CatalogMemory) -> bytes | None:
    """A memory's data key; None when the bank is not encrypted or the key was destroyed."""
    if namespace.keys is None or memory.page_id is None or memory.slot is None:
        return None
    with core.catalog.read() as connection:
        page = catalog.pages_by_id(connection, namespace.id, [memory.page_id]).get(memory.page_id)
    return None if page is None else namespace.keys.key(page, memory.slot)


def clear_dead_frames(core: Core) -> int:
    """Zeroes superseded frames and drops their rows; bytes cleared. The caller holds the writer's lock."""
    with core.catalog.read() as connection:
        dead = [frame for frame in catalog.dead_frames(connection) if core.segments.size(frame.segment)]
    for number in sorted({frame.segment for frame in dead}):
        core.segments.zero(number, [(frame.start, frame.length) for frame in dead if frame.segment == number])
    if dead:
        with core.catalog.write() as connection:
            catalog.remove_frames(connection, [frame.row for frame in dead])
    return sum(frame.length for frame in dead)


def _committed(core: Core, namespace: Namespace) -> int:
    with core.catalog.read() as connection:
        row = catalog.namespace_by_id(connection, namespace.id)
    return 0 if row is None else row.batch


def reclaim_segments(core: Core) -> None:
    """Clears what lies behind the committed ends. The caller holds the writer's lock."""
    with core.catalog.read() as connection:
        ends = catalog.segment_ends(connection)
    for number in core.segments.numbers():
        if number not in ends:
            core.segments.forget_file(number)
            zero_and_unlink(core.segments.name(number))
            fsync_dir(core.segments.path)
        elif core.segments.size(number) > ends[number]:
            core.segments.cut(number, ends[number])
            core.segments.sync(number)


def adopt_rebuilt(core: Core) -> None:
    """Puts databases that a repair had made anew in their places; half-made ones go."""
    folder = core.path / "namespaces"
    for path in sorted(folder.glob(f"*{REBUILT}*")):
        zero_and_unlink(path)
    for path in sorted(folder.glob(f"*{MENDED}")):
        namespace_id = path.name.split(".")[0]
        core.release(namespace_id)
        core.remove_database(namespace_id)
        path.replace(core.namespace_path(namespace_id))
        fsync_dir(folder)


def reclaim_files(core: Core) -> None:
    with core.catalog.read() as connection:
        known = set(connection.execute(select(catalog_schema.namespaces.c.id)).scalars())
    for folder in ("namespaces", "keys"):
        for entry in os.scandir(core.path / folder):
            if entry.name.split(".")[0] not in known:
                zero_and_unlink(core.path / folder / entry.name)
    index = core.path / "index"
    for name in [path.name for path in index.iterdir()] if index.is_dir() else []:
        if name in known:
            continue
        if not (index / name).is_dir():
            zero_and_unlink(index / name)
        elif is_id(name):  # other folders are other programs'
            core.remove_index(name)
    zero_and_unlink(core.path / "catalog.db.before-upgrade")
