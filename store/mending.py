"""Mending one namespace whose database can be read: words from frames, frames from words, traces dropped."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection, bindparam, text

from mnemos.errors import BankError, BankUnreadableError
from mnemos.store import catalog, shards, words
from mnemos.store.catalog import CatalogMemory, Placed
from mnemos.store.core import Core, Namespace
from mnemos.store.frames import FrameError, decode_frame
from mnemos.store.keypages import PAGE_KEYS, PageRow, Slot
from mnemos.store.payload import pack_text, unpack_text
from mnemos.store.records import Problem, UseRecord
from mnemos.store.verifying import being_erased, erased_ids, index_mismatch, same_words
from mnemos.store.words import Filter, Row
from mnemos.store.writing import catalog_row, frame_group

_DAMAGED = 2  # in `memories.is_open`: neither waits for a reply nor for a trace
_TRACE = ("kv", "route")


@dataclass
class Mended:
    """What was done, to what."""

    repaired: list[Problem] = field(default_factory=list)
    quarantined: list[Problem] = field(default_factory=list)

    def fixed(self, kind: str, subject: str, detail: str) -> None:
        self.repaired.append(Problem(kind, subject, detail))

    def lost(self, memory_id: str, detail: str) -> None:
        self.quarantined.append(Problem("quarantined", memory_id, detail))


@dataclass
class _State:
    """What the catalog and the database hold of a namespace, and which frames can be read."""

    memories: dict[str, CatalogMemory]
    known: dict[str, Row]
    keys: dict[str, bytes | None]
    keyless: set[str]  # memories whose data key is lost
    frames: dict[str, list[Placed]]
    texts: dict[str, tuple[Row, list[UseRecord]]]  # what readable text frames hold


def mend_namespace(core: Core, namespace: Namespace, mended: Mended) -> None:
    """Every memory of it ends up whole, without its trace, or in quarantine. The caller holds the lock."""
    _mend_index(namespace, mended)
    _erase_again(core, namespace, mended)
    state = _look(core, namespace)
    _mend_words(core, namespace, state, mended)
    _drop_traces(core, namespace, state, mended)
    _mend_frames(core, namespace, state, mended)
    _mend_index(namespace, mended)
    _mend_shards(core, namespace, mended)


def _mend_index(namespace: Namespace, mended: Mended) -> None:
    mismatch = index_mismatch(namespace)
    if mismatch is None:
        return
    with namespace.database.write() as connection:
        connection.execute(text("INSERT INTO words (words) VALUES ('rebuild')"))
    mended.fixed("index-mismatch", namespace.id, "the lexical index was made anew from the texts")


def _mend_shards(core: Core, namespace: Namespace, mended: Mended) -> None:
    """Shards that can't be read, or hold what is gone, are let go: a search makes them again from frames."""
    with namespace.database.read() as connection:
        rows = shards.rows(connection)
    with core.catalog.read() as connection:
        known = catalog.namespace_memories(connection, namespace.id).keys()
    bad = []
    for row in rows:
        try:
            if set(shards.read(core, namespace, row).ids) <= known:
                continue
            kind = "stale-shard"
        except BankUnreadableError:
            kind = "corrupt-shard"
        bad.append(row.block)
        mended.fixed(kind, row.id, "its vectors were let go; the next search makes them again")
    for name in shards.sweep(core, namespace):
        mended.fixed("orphan-file", f"index/{namespace.id}/{name}", "overwritten and removed")
    if bad:
        shards.drop(namespace, bad)
        shards.sweep(core, namespace)


def _look(core: Core, namespace: Namespace) -> _State:
    waiting = being_erased(core)
    with core.catalog.read() as connection:
        found = catalog.namespace_memories(connection, namespace.id)
        frames = catalog.namespace_frames(connection, namespace.id)
        pages = {page.id: page for page in catalog.pages(connection, namespace.id)}
    memories = {memory_id: memory for memory_id, memory in found.items() if memory_id not in waiting}
    with namespace.database.read() as connection:
        rows = words.select_rows(connection, Filter())
    known = {row.id: row for row in rows if row.id not in waiting and row.batch <= namespace.committed}
    keys: dict[str, bytes | None] = {}
    keyless: set[str] = set()
    for memory in memories.values():
        keys[memory.id] = None
        if namespace.keys is None:
            continue
        page = None if memory.page_id is None else pages.get(memory.page_id)
        try:
            if page is not None and memory.slot is not None:
                keys[memory.id] = namespace.keys.key(page, memory.slot)
        except BankUnreadableError:
            pass
        if keys[memory.id] is None:
            keyless.add(memory.id)
    live: dict[str, list[Placed]] = {}
    for frame in frames:
        if frame.live:
            live.setdefault(frame.owner, []).append(frame)
    state = _State(memories, known, keys, keyless, live, {})
    for memory_id in memories:
        for frame in state.frames.get(memory_id, []):
            payload = _payload(core, frame, state) if frame.kind == "text" else None
            if payload is not None:
                try:
                    state.texts[memory_id] = unpack_text(payload, memory_id, batch=namespace.committed)
                except FrameError:
                    continue
    return state


def _payload(core: Core, frame: Placed, state: _State) -> bytes | None:
    """What a frame holds; None where it can't be read or is not the one that the catalog knows."""
    if frame.owner in state.keyless:
        return None
    try:
        data = core.segments.read(frame.segment, frame.start, frame.length)
        payload = decode_frame(data, frame.kind, frame.owner, state.keys[frame.owner])
    except (FrameError, BankError):
        return None
    return payload if data[52:68] == frame.digest[:16] else None


def _mend_words(core: Core, namespace: Namespace, state: _State, mended: Mended) -> None:
    """Rows of words from text frames; quarantine where there are neither."""
    batch = namespace.committed
    healed: list[str] = []
    damaged: list[str] = []
    with namespace.database.write() as connection:
        for memory_id in state.memories:
            held = state.known.get(memory_id)
            if memory_id in state.texts:
                row, uses = state.texts[memory_id]
                if held is not None and same_words(row, held):
                    continue
                _put_row(connection, row, held)
                words.set_uses(connection, memory_id, uses)
                words.touch_sessions(connection, [] if row.session_id is None else [row.session_id])
                state.known[memory_id] = row
                if held is not None and held.status == "damaged":
                    healed.append(memory_id)
                kind = "missing-words" if held is None else "words-differ"
                mended.fixed(kind, memory_id, "its words were taken from its text frame")
            elif held is None:
                row = _placeholder(memory_id, words.next_ordinal(connection), batch)
                words.insert_rows(connection, [row])
                state.known[memory_id] = row
                damaged.append(memory_id)
                mended.lost(memory_id, "its words are lost in the database and in its frame")
    with core.catalog.write() as connection:
        for memory_id in healed:
            is_open = int(state.known[memory_id].status == "open")
            _set_open(connection, memory_id, is_open)
        for memory_id in damaged:
            _set_open(connection, memory_id, _DAMAGED)


def _put_row(connection: Connection, row: Row, held: Row | None) -> None:
    if held is None:
        taken = text("SELECT 1 FROM memory WHERE ordinal = :ordinal")
        if connection.execute(taken, {"ordinal": row.ordinal}).scalar_one_or_none() is not None:
            row = replace(row, ordinal=words.next_ordinal(connection))
        claimed = text("SELECT 1 FROM memory WHERE content_tag = :tag")
        if connection.execute(claimed, {"tag": row.content_tag}).scalar_one_or_none() is not None:
            row = replace(row, content_tag=None)
        words.insert_rows(connection, [row])
        return
    flags = (0, 0) if held.status == "damaged" else (held.pinned, held.hidden)
    connection.execute(text("DELETE FROM memory WHERE id = :id"), {"id": row.id})
    _put_row(connection, replace(row, pinned=flags[0], hidden=flags[1]), None)


def _placeholder(memory_id: str, ordinal: int, batch: int) -> Row:
    return Row(
        ordinal=ordinal,
        id=memory_id,
        kind="note",
        text="",
        reply=None,
        speaker=None,
        title=None,
        source=None,
        session_id=None,
        created_us=catalog.now_us(),
        expires_us=None,
        tags=json.dumps([]),
        status="damaged",
        pinned=0,
        hidden=1,
        content_tag=None,
        text_bytes=0,
        batch=batch,
        born=batch,
    )


def _drop_traces(core: Core, namespace: Namespace, state: _State, mended: Mended) -> None:
    """A trace that can't be read is dropped: the model makes it again from the text."""
    doomed = []
    for memory_id, memory in state.memories.items():
        if state.known[memory_id].status == "damaged":
            continue
        traces = [frame for frame in state.frames.get(memory_id, []) if frame.kind in _TRACE]
        if memory.trace_fingerprint is None and not traces:
            continue
        whole = {frame.kind for frame in traces} == set(_TRACE)
        if not whole or any(_payload(core, frame, state) is None for frame in traces):
            doomed.append(memory_id)
            mended.fixed("corrupt-frame", memory_id, "its trace was dropped; the model makes it again")
    if doomed:
        with core.catalog.write() as connection:
            _retire_traces(connection, doomed)


def _mend_frames(core: Core, namespace: Namespace, state: _State, mended: Mended) -> None:
    """Text frames, data keys and catalog rows from rows of words."""
    whole = {i for i, row in state.known.items() if row.status != "damaged"}
    rewrite = [i for i in state.memories if i in whole and i not in state.texts]
    adopt = [i for i in whole if i not in state.memories]
    wanting = [i for i in rewrite if i in state.keyless] if namespace.keys is not None else []
    fresh = dict(zip([*wanting, *adopt], _new_keys(core, namespace, len(wanting) + len(adopt)), strict=True))
    slots = {memory_id: slot for memory_id, (slot, _) in fresh.items()}
    pages = next(iter(fresh.values()))[1] if fresh else []
    hopeless = state.keyless - set(slots)
    if not rewrite and not adopt and not hopeless:
        return
    with namespace.database.read() as connection:
        uses = {i: words.uses_of(connection, i) for i in (*rewrite, *adopt)}
    with frame_group(core) as group:
        for memory_id in (*rewrite, *adopt):
            slot = slots.get(memory_id)
            key = state.keys.get(memory_id) if slot is None else slot.key
            group.add("text", memory_id, pack_text(state.known[memory_id], uses[memory_id]), key)
        group.start_sync(namespace)
        with core.catalog.write() as connection:
            catalog.retire_frames(connection, rewrite, ("text",))
            catalog.retire_frames(connection, adopt, ("text", "kv", "route"))
            _retire_traces(connection, wanting)
            catalog.set_pages(connection, namespace.id, pages)
            for memory_id in (*wanting, *hopeless):
                slot = slots.get(memory_id)
                connection.execute(
                    text("UPDATE memories SET page_id = :page, slot = :slot WHERE id = :id"),
                    {
                        "page": None if slot is None else slot.page_id,
                        "slot": None if slot is None else slot.number,
                        "id": memory_id,
                    },
                )
            catalog.add_memories(
                connection, [catalog_row(namespace, state.known[i], slots.get(i)) for i in adopt]
            )
            group.record(connection)
            catalog.remove_unused_pages(connection, namespace.id)
            live = catalog.pages(connection, namespace.id)
    if namespace.keys is not None:
        namespace.keys.clear(live)
    for memory_id in rewrite:
        kind = "undecryptable" if memory_id in slots else "corrupt-frame"
        mended.fixed(kind, memory_id, "its text frame was written anew from the database")
    for memory_id in adopt:
        mended.fixed("orphan-words", memory_id, "it was entered into the catalog again")


def _new_keys(core: Core, namespace: Namespace, count: int) -> list[tuple[Slot | None, list[Any]]]:
    """A new data key each, in pages that can be read, with the page rows for the catalog."""
    if namespace.keys is None:
        return [(None, [])] * count
    if not count:
        return []
    with core.catalog.read() as connection:
        pages = catalog.pages(connection, namespace.id)
    usable = []
    for page in pages:
        try:
            namespace.keys.key(page, max(page.used - 1, 0))
            usable.append(page)
        except BankUnreadableError:
            usable.append(replace(page, used=PAGE_KEYS))  # full: nothing is added to what can't be read
    slots, changed = namespace.keys.allocate(usable, count)
    return [(slot, changed) for slot in slots]


def _erase_again(core: Core, namespace: Namespace, mended: Mended) -> None:
    """What a receipt says is gone, and an old copy of a file brought back."""
    with core.catalog.read() as connection:
        gone = erased_ids(connection)
        held = set(catalog.namespace_memories(connection, namespace.id))
        pages = catalog.pages(connection, namespace.id)
    with namespace.database.read() as connection:
        held |= set(connection.execute(text("SELECT id FROM memory WHERE erased = 0")).scalars())
    doomed = sorted(gone & held)
    if not doomed:
        return
    with namespace.database.write() as connection:
        _on_ids(connection, "DELETE FROM use WHERE reply_id IN :ids OR memory_id IN :ids", doomed)
        _on_ids(connection, "DELETE FROM memory WHERE id IN :ids", doomed)
    with core.catalog.read() as connection:
        frames = catalog.frames_of(connection, doomed)
        memories = catalog.get_memories(connection, doomed)
    for number in sorted({frame.segment for frame in frames}):
        core.segments.zero(number, [(f.start, f.length) for f in frames if f.segment == number])
    slots: dict[int, set[int]] = {}
    for memory in memories.values():
        if memory.page_id is not None and memory.slot is not None:
            slots.setdefault(memory.page_id, set()).add(memory.slot)
    moved: list[PageRow] = []
    for page in pages:
        if namespace.keys is not None and page.id in slots:
            try:
                moved += namespace.keys.shred([*pages, *moved], {page.id: slots[page.id]})
            except BankUnreadableError:
                continue  # the keys can't be read: nobody opens anything with them
    with core.catalog.write() as connection:
        catalog.set_pages(connection, namespace.id, moved)
        catalog.remove_frames_of(connection, doomed)
        catalog.remove_memories(connection, doomed)
        catalog.raise_epoch(connection)
        live = catalog.pages(connection, namespace.id)
    if namespace.keys is not None:
        namespace.keys.clear(live)
    namespace.database.truncate_wal()
    for memory_id in doomed:
        mended.fixed("present-though-erased", memory_id, "erased again")


def _retire_traces(connection: Connection, ids: Iterable[str]) -> None:
    held = list(ids)
    catalog.retire_frames(connection, held, ("kv", "route"))
    for part in catalog.chunks(held):
        _on_ids(
            connection,
            "UPDATE memories SET trace_fingerprint = NULL, tokens = 0, trace_bytes = 0, kv_bytes = 0 "
            "WHERE id IN :ids",
            part,
        )


def _set_open(connection: Connection, memory_id: str, value: int) -> None:
    statement = text("UPDATE memories SET is_open = :value WHERE id = :id")
    connection.execute(statement, {"value": value, "id": memory_id})


def _on_ids(connection: Connection, statement: str, ids: Iterable[str]) -> None:
    connection.execute(text(statement).bindparams(bindparam("ids", expanding=True)), {"ids": list(ids)})
