"""Adding memories, finishing exchanges, storing traces.

The order of every write: frames and data keys to the disk, then the namespace database, then the catalog.
What the catalog does not know of was never acknowledged, and recovery takes it back.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection, text

from mnemos.errors import BankUnreadableError, InvalidTextError, NotFoundError
from mnemos.store import branches, catalog, quotas, shards, words
from mnemos.store.catalog import Placed
from mnemos.store.core import Core, Namespace
from mnemos.store.disk import check_room
from mnemos.store.frames import HEADER_BYTES, prepare_frame
from mnemos.store.ids import new_id
from mnemos.store.keypages import Slot
from mnemos.store.payload import pack_text
from mnemos.store.records import FrameKind, MemoryDraft, Status, TraceDraft, UseRecord
from mnemos.store.recovery import settle
from mnemos.store.segments import SEGMENT_BYTES, Appender
from mnemos.store.words import Row

MAX_TEXT_BYTES = 1 << 20
MAX_NAME_BYTES = 4 << 10  # of a title, a source, a tag, a speaker


@dataclass
class Group:
    """Frames that become durable together."""

    appender: Appender
    placed: list[Placed] = field(default_factory=list)

    def add(
        self, kind: FrameKind, owner: str, payload: bytes, key: bytes | None, fingerprint: str | None = None
    ) -> Placed:
        frame = prepare_frame(kind, owner, payload, key)
        segment, start, place = self.appender.reserve(frame.length)
        placed = Placed(owner, kind, segment, start, frame.length, frame.write(place), fingerprint)
        self.placed.append(placed)
        return placed

    def start_sync(self, namespace: Namespace | None = None) -> None:
        """Begins to make the frames durable, and the namespace's data keys."""
        keys = None if namespace is None else namespace.keys
        self.appender.start_sync(*([] if keys is None else [keys.sync]))

    def finish_sync(self) -> None:
        """What `start_sync` began with is on the disk: a transaction that counts on it may be committed."""
        self.appender.finish_sync()

    def record(self, connection: Connection) -> None:
        """Writes the frames into the catalog, at the end of its transaction, once they are durable."""
        catalog.add_frames(connection, self.placed)
        catalog.set_segment_ends(connection, self.appender.ends)
        self.finish_sync()


@contextmanager
def frame_group(core: Core) -> Iterator[Group]:
    """A group of frames; taken back when the block raises before the catalog has it. The caller holds the
    writer's lock.
    """
    with core.catalog.read() as connection:
        number, end = catalog.newest_segment(connection)
    appender = Appender(core.segments, number, end, core.segment_bytes or SEGMENT_BYTES)
    try:
        yield Group(appender)
    except BaseException:
        # An interrupt can come right after the commit: what the catalog has is no longer ours to take back.
        with core.catalog.read() as connection:
            is_recorded = catalog.newest_segment(connection) != (number, end)
        if not is_recorded:
            appender.abort()
        raise


def add(core: Core, name: str, drafts: Sequence[MemoryDraft]) -> tuple[list[str], dict[str, Row]]:
    """Ids of the drafts' memories, in order: new ones, or the first one with the same content key. And the
    rows of the new ones by their ids.
    """
    for draft in drafts:
        check_draft(draft)
    with core.writing():
        check_room(core.path, sum(2 * len(draft.text.encode()) + 2048 for draft in drafts))
        namespace = core.ensure(name)
        batch = settle(core, namespace) + 1
        with namespace.database.read() as connection:
            tags = [None if d.content_key is None else namespace.content_tag(d.content_key) for d in drafts]
            known = words.ids_by_content(connection, {tag for tag in tags if tag is not None})
            ordinal = words.next_ordinal(connection)
            for draft in drafts:
                _check_uses(connection, draft.uses)
        ids: list[str] = []
        rows: list[Row] = []
        uses: dict[str, Sequence[UseRecord]] = {}
        for draft, tag in zip(drafts, tags, strict=True):
            if tag is not None and tag in known:
                ids.append(known[tag])
                continue
            row = _row(draft, new_id(), ordinal + len(rows), tag, batch)
            rows.append(row)
            ids.append(row.id)
            if draft.uses:
                uses[row.id] = draft.uses
            if tag is not None:
                known[tag] = row.id
        if rows:
            with namespace.database.read() as connection:
                quotas.check_room(connection, rows, catalog.now_us())
            _write_rows(core, namespace, rows, batch, uses)
        return ids, {row.id: row for row in rows}


def _write_rows(
    core: Core, namespace: Namespace, rows: list[Row], batch: int, uses: Mapping[str, Sequence[UseRecord]]
) -> None:
    slots, pages = allocate_keys(core, namespace, len(rows))
    with frame_group(core) as group:
        for row, slot in zip(rows, slots, strict=True):
            payload = pack_text(row, uses.get(row.id, ()))
            group.add("text", row.id, payload, None if slot is None else slot.key)
        group.start_sync(namespace)
        with namespace.database.write() as connection:
            words.insert_rows(connection, rows)
            for memory_id, made_with in uses.items():
                words.set_uses(connection, memory_id, made_with)
            named = {row.session_id for row in rows if row.session_id is not None}
            words.touch_sessions(connection, named)
            branches.reopen(connection, named)
            words.set_batch(connection, batch)
            group.finish_sync()
        with core.catalog.write() as connection:
            catalog.add_memories(
                connection, [catalog_row(namespace, row, slot) for row, slot in zip(rows, slots, strict=True)]
            )
            catalog.set_pages(connection, namespace.id, pages)
            catalog.set_batch(connection, namespace.id, batch)
            group.record(connection)
        namespace.committed = batch


def complete(
    core: Core,
    name: str,
    prefix: str,
    reply: str,
    status: Status,
    uses: Sequence[UseRecord],
    tags: Sequence[str] | None = None,
    expires_us: int | None = None,
) -> str:
    """Adds the reply's words and provenance to a memory and drops its trace, which knew nothing of them.

    Tags and an expiry, where they are given, take the place of the memory's own.
    """
    check_names(tags or ())
    _check_text(reply, "reply")
    with core.writing():
        check_room(core.path, 2 * len(reply.encode()) + 4096)
        namespace = core.get(name)
        batch = settle(core, namespace) + 1
        with namespace.database.read() as connection:
            memory_id = words.full_id(connection, prefix)
            (row,) = words.select_rows(connection, words.Filter(ids=[memory_id]))
            _check_uses(connection, uses)
        changed = replace(
            row,
            reply=reply or None,
            status=status,
            batch=batch,
            text_bytes=len(row.text.encode()) + len(reply.encode()),
            tags=row.tags if tags is None else packed(tags),
            expires_us=row.expires_us if expires_us is None else expires_us,
        )
        with core.catalog.read() as connection:
            key = data_keys(core, namespace, connection, [memory_id])[memory_id]
            has_trace = catalog.get_memories(connection, [memory_id])[memory_id].trace_fingerprint is not None
        with frame_group(core) as group:
            group.add("text", memory_id, pack_text(changed, uses), key)
            group.start_sync()
            with namespace.database.write() as connection:
                if has_trace:
                    shards.take_out(core, namespace, connection, [memory_id])
                update_words(connection, changed)
                words.set_uses(connection, memory_id, uses)
                words.touch_sessions(connection, [] if row.session_id is None else [row.session_id])
                words.set_batch(connection, batch)
                group.finish_sync()
            with core.catalog.write() as connection:
                catalog.retire_frames(connection, [memory_id], ("text", "kv", "route"))
                connection.execute(
                    text(
                        "UPDATE memories SET is_open = :open, trace_fingerprint = NULL, tokens = 0, "
                        "trace_bytes = 0, kv_bytes = 0 WHERE id = :id"
                    ),
                    {"open": int(status == "open"), "id": memory_id},
                )
                catalog.set_batch(connection, namespace.id, batch)
                group.record(connection)
            namespace.committed = batch
        if has_trace:
            shards.sweep(core, namespace)
        return memory_id


def _check_uses(connection: Connection, uses: Sequence[UseRecord]) -> None:
    """Raises NotFoundError when something is to be kept that was made from what is gone."""
    used = {use.memory_id for use in uses}
    if not used:
        return
    gone = used - {found.id for found in words.select_rows(connection, words.Filter(ids=sorted(used)))}
    if gone:
        raise NotFoundError(
            f"{len(gone)} of the memories that this reply was made with were erased meanwhile, so it "
            "was not kept. Ask again."
        )


def put_traces(core: Core, name: str, drafts: Sequence[TraceDraft]) -> None:
    """Stores what a model keeps of memories; a memory's former trace is superseded."""
    if not drafts:
        return
    with core.writing():
        check_room(
            core.path, sum(len(draft.kv) + len(draft.route) + 2 * HEADER_BYTES + 512 for draft in drafts)
        )
        namespace = core.get(name)
        settle(core, namespace)
        last = {draft.memory_id: draft for draft in drafts}
        with core.catalog.read() as connection:
            known = catalog.get_memories(connection, last)
            missing = [memory_id for memory_id in last if memory_id not in known]
            if missing or any(memory.namespace_id != namespace.id for memory in known.values()):
                raise NotFoundError(
                    "A memory that was to get its trace is gone; ask for `pending_traces` again."
                )
            keys = data_keys(core, namespace, connection, list(last))
        with frame_group(core) as group:
            updates: list[dict[str, Any]] = []
            for memory_id, draft in last.items():
                key = keys[memory_id]
                kv_bytes = 0
                if draft.kv:
                    kv_bytes = group.add("kv", memory_id, draft.kv, key, draft.fingerprint).length
                route = group.add("route", memory_id, draft.route, key, draft.fingerprint)
                updates.append(
                    {
                        "id": memory_id,
                        "fingerprint": draft.fingerprint,
                        "tokens": draft.tokens,
                        "bytes": kv_bytes + route.length,
                        "kv_bytes": kv_bytes,
                    }
                )
            group.start_sync()
            with core.catalog.write() as connection:
                catalog.retire_frames(connection, last, ("kv", "route"))
                connection.execute(
                    text(
                        "UPDATE memories SET trace_fingerprint = :fingerprint, tokens = :tokens, "
                        "trace_bytes = :bytes, kv_bytes = :kv_bytes WHERE id = :id"
                    ),
                    updates,
                )
                group.record(connection)


def put_prefix(core: Core, fingerprint: str, payload: bytes) -> None:
    """Stores the frozen system prefix of one model, for the whole bank."""
    with core.writing():
        check_room(core.path, len(payload) + 4096)
        with core.catalog.read() as connection:
            key = bank_key(core, connection)
        with frame_group(core) as group:
            group.add("prefix", core.bank_id, payload, key, fingerprint)
            group.start_sync()
            with core.catalog.write() as connection:
                connection.execute(
                    text(
                        "UPDATE frames SET live = 0 WHERE owner = :owner AND fingerprint = :fingerprint AND "
                        "live = 1"
                    ),
                    {"owner": core.bank_id, "fingerprint": fingerprint},
                )
                group.record(connection)


def bank_key(core: Core, connection: Connection) -> bytes | None:
    """The key of what belongs to no single memory."""
    if not core.encrypted:
        return None
    sealed = catalog.get_meta(connection, "bank_key")
    if sealed is None:
        raise BankUnreadableError(
            f"The catalog of {core.path} lacks the bank's own key. Restore it from a copy."
        )
    return core.master_box.open(sealed, b"mnemos/bank/key")


def allocate_keys(core: Core, namespace: Namespace, count: int) -> tuple[list[Slot | None], list[Any]]:
    """Durable new data keys (None where nothing is encrypted), and the page rows for the catalog."""
    if namespace.keys is None:
        return [None] * count, []
    with core.catalog.read() as connection:
        pages = catalog.pages(connection, namespace.id)
    slots, changed = namespace.keys.allocate(pages, count)
    return list(slots), changed


def data_keys(
    core: Core, namespace: Namespace, connection: Connection, ids: Sequence[str]
) -> dict[str, bytes | None]:
    """Each memory's data key; None where the bank is not encrypted. NotFoundError when one is gone."""
    known = catalog.get_memories(connection, ids)
    if len(known) < len(set(ids)):
        raise NotFoundError("No such memory in the catalog; it may have been erased meanwhile.")
    return keys_of(namespace, connection, known.values())


def keys_of(
    namespace: Namespace, connection: Connection, memories: Collection[catalog.CatalogMemory]
) -> dict[str, bytes | None]:
    """As `data_keys`, of memories whose catalog rows are at hand."""
    if namespace.keys is None:
        return {memory.id: None for memory in memories}
    page_ids = {memory.page_id for memory in memories if memory.page_id is not None}
    pages = catalog.pages_by_id(connection, namespace.id, page_ids)
    found: dict[str, bytes | None] = {}
    for memory in memories:
        page = None if memory.page_id is None else pages.get(memory.page_id)
        key = None if page is None or memory.slot is None else namespace.keys.key(page, memory.slot)
        if key is None:
            raise NotFoundError("The memory's key was destroyed; it is being erased.")
        found[memory.id] = key
    return found


def catalog_row(namespace: Namespace, row: Row, slot: Slot | None) -> dict[str, Any]:
    return {
        "id": row.id,
        "namespace_id": namespace.id,
        "page_id": None if slot is None else slot.page_id,
        "slot": None if slot is None else slot.number,
        "is_open": int(row.status == "open"),
    }


def update_words(connection: Connection, row: Row) -> None:
    connection.execute(
        text(
            "UPDATE memory SET text = :text, reply = :reply, status = :status, text_bytes = :bytes, batch = "
            ":batch, tags = :tags, expires_us = :expires WHERE id = :id"
        ),
        {
            "text": row.text,
            "reply": row.reply,
            "status": row.status,
            "bytes": row.text_bytes,
            "batch": row.batch,
            "tags": row.tags,
            "expires": row.expires_us,
            "id": row.id,
        },
    )


def check_draft(draft: MemoryDraft) -> None:
    """Raises InvalidTextError for what can't be a memory."""
    if not draft.text.strip():
        raise InvalidTextError("A memory needs some text; this one is empty.")
    _check_text(draft.text, "text")
    _check_text(draft.reply or "", "reply")
    check_names((draft.title, draft.source, draft.speaker, draft.session_id, *draft.tags))


def check_names(values: Iterable[str | None]) -> None:
    """Raises InvalidTextError for a title, a source, a speaker or a tag that can't be one."""
    for value in values:
        if value is not None and len(_utf8(value, "title, source, speaker or tag")) > MAX_NAME_BYTES:
            raise InvalidTextError(
                f"A title, source, speaker or tag is over {MAX_NAME_BYTES:,} bytes; shorten it."
            )


def _check_text(value: str, what: str) -> None:
    size = len(_utf8(value, what))
    if size > MAX_TEXT_BYTES:
        raise InvalidTextError(
            f"The {what} has {size:,} bytes; a memory takes {MAX_TEXT_BYTES:,}. Split it up."
        )


def _utf8(value: str, what: str) -> bytes:
    try:
        return value.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidTextError(
            f"The {what} is not valid Unicode (a lone surrogate). Decode it properly first."
        ) from None


def _row(draft: MemoryDraft, memory_id: str, ordinal: int, tag: bytes | None, batch: int) -> Row:
    created_us = catalog.now_us() if draft.created_at is None else words.to_us(draft.created_at)
    return Row(
        ordinal=ordinal,
        id=memory_id,
        kind=draft.kind,
        text=draft.text,
        reply=draft.reply or None,
        speaker=draft.speaker,
        title=draft.title,
        source=draft.source,
        session_id=draft.session_id,
        created_us=created_us,
        expires_us=None if draft.expires_at is None else words.to_us(draft.expires_at),
        tags=packed(draft.tags),
        status=draft.status,
        pinned=0,
        hidden=0,
        content_tag=tag,
        text_bytes=len(draft.text.encode()) + len((draft.reply or "").encode()),
        batch=batch,
        born=batch,
    )


def packed(tags: Sequence[str]) -> str:
    return json.dumps(list(dict.fromkeys(tags)), ensure_ascii=False)
