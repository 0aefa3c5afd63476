"""Erasing memories so that no file holds them, in steps that a crash at any point can't stop.

The intent is written first (ids only). Every later step can be run again, so the next open runs them all.
"""

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select, text, update

from mnemos.errors import BankError, ErasePendingError, NotFoundError, StalePlanError, UsageError
from mnemos.store import catalog, catalog_schema, editing, indexing, receipts, rewriting, words
from mnemos.store.core import Core, Namespace
from mnemos.store.ids import new_id
from mnemos.store.payload import pack_text
from mnemos.store.planning import WHOLE, dependants_of, token
from mnemos.store.receipts import note, sign
from mnemos.store.records import ErasePlan, MemoryDraft
from mnemos.store.recovery import reclaim_segments, settle
from mnemos.store.selfcheck import check_erased, ranges_of, take_stock
from mnemos.store.words import Filter, Row
from mnemos.store.writing import allocate_keys, catalog_row, frame_group

STEPS = (
    "intent",
    "rewrite",
    "tombstone",
    "index",
    "keys",
    "frames",
    "rows",
    "checkpoint",
    "check",
    "receipt",
)
_ROOM_BYTES = 64 << 20  # with less than this left, the logs are cut first: erasing needs some room itself
OnStep = Callable[[str], None]


@dataclass
class Intent:
    """What an erase set out to do; kept in the catalog until its receipt is."""

    id: str
    namespace_id: str
    created_us: int
    body: dict[str, Any]

    @property
    def is_whole(self) -> bool:
        return bool(self.body["whole"])

    @property
    def selected(self) -> list[str]:
        return list(self.body["selected"])

    @property
    def rewritten(self) -> dict[str, str]:
        """Old id to new id, of exchanges whose reply goes and whose user's words stay."""
        return dict(self.body["rewritten"])

    @property
    def edited(self) -> list[str]:
        """Those of the rewritten whose new words are other ones, written before the intent was."""
        return list(self.body.get("edited", ()))

    @property
    def doomed(self) -> list[str]:
        """Ids whose keys, frames and rows go."""
        return [*self.selected, *self.rewritten]

    def save(self, connection: Connection) -> None:
        table = catalog_schema.intents
        body = json.dumps(self.body, separators=(",", ":"))
        connection.execute(update(table).where(table.c.id == self.id).values(body=body))


def erase(core: Core, plan: ErasePlan, on_step: OnStep | None) -> dict[str, Any]:
    """Carries the plan out; the signed receipt. StalePlanError, NotFoundError, ErasePendingError."""
    with core.writing():
        namespace = core.find(plan.namespace)
        if namespace is None:
            raise StalePlanError("The plan's namespace is gone; plan again.")
        settle(core, namespace)
        rows, dependants = _confirm(core, namespace, plan)
        if not plan.token.startswith(WHOLE) and not rows:
            raise NotFoundError("The plan selects no memory, so nothing was erased.")
        intent = _intend(core, namespace, plan, rows, dependants)
        _tell(on_step, "intent")
        return _run(core, intent, on_step)


def replace_text(core: Core, plan: ErasePlan, new_text: str, on_step: OnStep | None) -> dict[str, Any]:
    """Erases the one memory that the plan selects, with new words in its place; the signed receipt.

    Raises as `erase` does; UsageError for another plan or an open exchange; InvalidTextError.
    """
    if len(plan.selected) != 1 or plan.token.startswith(WHOLE):
        raise UsageError("An edit takes the place of one memory; plan the erase of that one by its id.")
    with core.writing():
        namespace = core.find(plan.namespace)
        if namespace is None:
            raise StalePlanError("The plan's namespace is gone; plan again.")
        settle(core, namespace)
        rows, dependants = _confirm(core, namespace, plan)
        with editing.written(core, namespace, rows[0], new_text) as edit:
            intent = _intend(core, namespace, plan, rows, dependants, edit)
        _tell(on_step, "intent")
        return _run(core, intent, on_step)


def resume(core: Core, on_step: OnStep | None = None) -> list[dict[str, Any]]:
    """Finishes every erase that a crash or a reader left half-done; their receipts.

    Raises ErasePendingError when a reader is still in the way of one.
    """
    if not pending(core):
        return []
    with core.writing():
        return [_run(core, intent, on_step) for intent in pending(core)]


def pending(core: Core) -> list[Intent]:
    with core.catalog.read() as connection:
        rows = connection.execute(
            select(catalog_schema.intents).order_by(catalog_schema.intents.c.created_us)
        )
        return [Intent(row.id, row.namespace_id, row.created_us, json.loads(row.body)) for row in rows]


def _confirm(core: Core, namespace: Namespace, plan: ErasePlan) -> tuple[list[Row], list[Row]]:
    """What the plan showed, if that is still how things are."""
    is_whole = plan.token.startswith(WHOLE)
    rows: list[Row] = []
    dependants: list[Row] = []
    if not is_whole:
        with namespace.database.read() as connection:
            rows = words.select_rows(connection, Filter(ids=[record.id for record in plan.selected]))
        if plan.cascade == "closure":
            dependants = dependants_of(namespace, [row.id for row in rows])
    if token(core, namespace, rows, dependants, plan.cascade, is_whole=is_whole) != plan.token:
        raise StalePlanError("What the plan showed has changed since; plan again and look at it anew.")
    return rows, dependants


def _intend(
    core: Core,
    namespace: Namespace,
    plan: ErasePlan,
    rows: list[Row],
    dependants: list[Row],
    edit: editing.Edit | None = None,
) -> Intent:
    is_whole = plan.token.startswith(WHOLE)
    selected = [record.id for record in plan.selected]
    body: dict[str, Any] = {
        "whole": is_whole,
        "cascade": plan.cascade,
        "selected": selected,
        "rewritten": {row.id: new_id() for row in dependants},
    }
    if edit is not None:
        body["selected"] = []
        body["edited"] = [edit.old.id]
        body["rewritten"][edit.old.id] = edit.new.id
        rows, dependants = [], [*rows, *dependants]
    if not is_whole:
        body |= _sessions_to_clear(namespace, rows, dependants)
    intent = Intent(new_id(), namespace.id, catalog.now_us(), body)
    with core.catalog.write() as connection:
        if not is_whole:
            _take_stock(connection, intent)
        connection.execute(
            insert(catalog_schema.intents).values(
                id=intent.id,
                namespace_id=namespace.id,
                created_us=intent.created_us,
                body=json.dumps(body, separators=(",", ":")),
            )
        )
        if edit is not None:
            edit.record(connection)
        note(connection, "erase" if edit is None else "edit", intent.id, len(selected))
    return intent


def _take_stock(connection: Connection, intent: Intent) -> None:
    """Notes where the doomed frames lie, while the rows that say so are still there."""
    if intent.is_whole:
        intent.body |= take_stock(catalog.namespace_places(connection, intent.namespace_id))
    else:
        frames = catalog.frames_of(connection, intent.doomed)
        intent.body |= take_stock(
            sorted((frame.segment, frame.start, frame.length, frame.digest) for frame in frames)
        )


def _sessions_to_clear(namespace: Namespace, rows: list[Row], dependants: list[Row]) -> dict[str, list[str]]:
    """Sessions that end with these memories, and those whose title repeats their words."""
    gone: dict[str, int] = {}
    for row in rows:
        if row.session_id is not None:
            gone[row.session_id] = gone.get(row.session_id, 0) + 1
    ended: list[str] = []
    retitled: list[str] = []
    with namespace.database.read() as connection:
        count = text("SELECT count(*) FROM memory WHERE session_id = :id AND erased = 0")
        for session_id, taken in gone.items():
            if connection.execute(count, {"id": session_id}).scalar_one() <= taken:
                ended.append(session_id)
        touched = {row.session_id for row in (*rows, *dependants) if row.session_id is not None}
        for session_id in touched - set(ended):
            (record,) = words.sessions(connection, namespace.name, session_id)
            if record.title and any(repeats(record.title, row) for row in (*rows, *dependants)):
                retitled.append(session_id)
    return {"ended": sorted(ended), "retitled": sorted(retitled)}


def repeats(title: str, row: Row | MemoryDraft) -> bool:
    """Whether a session's title holds a memory's words."""
    needle = " ".join(title.casefold().rstrip("….").split())
    hay = [" ".join(value.casefold().split()) for value in (row.text, row.reply, row.title) if value]
    return any(needle in value or value in needle for value in hay)


def _run(core: Core, intent: Intent, on_step: OnStep | None) -> dict[str, Any]:
    """Every step after the intent, in order; each does nothing where it was done before."""
    steps: Iterable[tuple[str, Callable[[Core, Intent], None]]]
    if intent.is_whole:
        steps = (
            ("tombstone", _bury_namespace),
            ("keys", _destroy_namespace_keys),
            ("index", _remove_namespace_database),
            ("frames", _zero_frames),
            ("rows", _remove_namespace_rows),
            ("checkpoint", _checkpoint),
        )
    else:
        steps = (
            ("rewrite", _rewrite),
            ("tombstone", _bury),
            ("index", _remove_from_index),
            ("keys", _destroy_keys),
            ("frames", _zero_frames),
            ("rows", _remove_rows),
            ("checkpoint", _checkpoint),
        )
    if shutil.disk_usage(core.path).free < _ROOM_BYTES:
        _truncate_logs(core, intent)
    for name, step in steps:
        step(core, intent)
        _tell(on_step, name)
    checks, cleared = check_erased(
        core, intent.namespace_id, intent.doomed, ranges_of(intent.body), is_whole=intent.is_whole
    )
    if not all(checks.values()):
        failed = ", ".join(name for name, held in checks.items() if not held)
        raise BankError(
            f"Erase {intent.id} did not pass its own check ({failed}), so it has no receipt. Run `mnemos "
            "bank verify`."
        )
    _tell(on_step, "check")
    receipt = _sign_off(core, intent, checks, cleared)
    _tell(on_step, "receipt")
    return receipt


def _tell(on_step: OnStep | None, name: str) -> None:
    if on_step is not None:
        on_step(name)


# -- steps of an erase of memories


def _rewrite(core: Core, intent: Intent) -> None:
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


def _bury(core: Core, intent: Intent) -> None:
    """From here on no search, list or provenance shows what is going: its rows are gone, index included."""
    namespace = _namespace(core, intent)
    with namespace.database.write() as connection:
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
        _on_ids(connection, "DELETE FROM session WHERE id IN :ids", intent.body["ended"])
        _on_ids(connection, "UPDATE session SET title = NULL WHERE id IN :ids", intent.body["retitled"])
        # In one transaction, or a reader could see scores that what is buried still weighs on.
        indexing.remove_rows(connection, intent.selected)
    _raise_epoch(core, intent)


def _remove_from_index(core: Core, intent: Intent) -> None:
    """Rows that an earlier version left marked as erased, and copies that lie where rows were moved from."""
    database = _namespace(core, intent).database
    with database.read() as connection:
        is_left = connection.execute(text("SELECT 1 FROM memory WHERE erased = 1 LIMIT 1")).first()
    if is_left:
        with database.write() as connection:
            indexing.remove_rows(connection, intent.selected)
    is_done = rewriting.rewrite_small(core, _namespace(core, intent))
    intent.body["page_copies"] = "cleared" if is_done else "due"


def _destroy_keys(core: Core, intent: Intent) -> None:
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


def _zero_frames(core: Core, intent: Intent) -> None:
    reclaim_segments(core)  # a killed writer's tail may hold frames of these memories, too
    for number, ranges in ranges_of(intent.body).items():
        core.segments.zero(number, ranges)


def _remove_rows(core: Core, intent: Intent) -> None:
    with core.catalog.write() as connection:
        catalog.remove_frames_of(connection, intent.doomed)
        catalog.remove_memories(connection, intent.doomed)
        if intent.body["page_copies"] == "due":
            rewriting.mark_due(connection, intent.namespace_id)


# -- steps of an erase of a whole namespace


def _bury_namespace(core: Core, intent: Intent) -> None:
    """Name and key go in one transaction: from here on nothing of the namespace can be read."""
    core.release(intent.namespace_id)
    table = catalog_schema.namespaces
    with core.catalog.write() as connection:
        connection.execute(
            update(table)
            .where(table.c.id == intent.namespace_id)
            .values(state="erased", name_tag=None, name_box=None, key_box=None)
        )
    _raise_epoch(core, intent)


def _destroy_namespace_keys(core: Core, intent: Intent) -> None:
    core.catalog.truncate_wal()
    core.remove_keys(intent.namespace_id)


def _remove_namespace_database(core: Core, intent: Intent) -> None:
    core.remove_database(intent.namespace_id)
    if "ranges" not in intent.body:
        with core.catalog.write() as connection:
            _take_stock(connection, intent)
            intent.save(connection)


def _remove_namespace_rows(core: Core, intent: Intent) -> None:
    with core.catalog.write() as connection:
        catalog.remove_namespace(connection, intent.namespace_id)


# -- steps of both


def _checkpoint(core: Core, intent: Intent) -> None:
    if not _truncate_logs(core, intent):
        raise ErasePendingError(
            f"Erase {intent.id}: the memories are out of reach, but another process is reading and keeps "
            "the last bytes from being cleared. There is no receipt yet; it comes when the bank is next "
            "opened for writing."
        )


def _truncate_logs(core: Core, intent: Intent) -> bool:
    """Both write-ahead logs, down to nothing. False when a reader is in the way."""
    namespace = None if intent.is_whole else core.by_id(intent.namespace_id)
    truncated = core.catalog.truncate_wal()
    return truncated if namespace is None else namespace.database.truncate_wal() and truncated


def _sign_off(core: Core, intent: Intent, checks: dict[str, bool], cleared: str) -> dict[str, Any]:
    with core.catalog.read() as connection:
        seq, head = receipts.audit_head(connection)
    key = _signing_key(core)
    body = intent.body
    receipt = sign(
        {
            "version": receipts.RECEIPT_VERSION,
            "id": intent.id,
            "bank": core.bank_id,
            "namespace": intent.namespace_id,
            "started_us": intent.created_us,
            "finished_us": catalog.now_us(),
            "whole_namespace": intent.is_whole,
            "cascade": body["cascade"],
            "erased": intent.selected,
            "rewritten": intent.rewritten,
            **({"edited": intent.edited} if intent.edited else {}),
            "memories": len(intent.selected),
            "frames": body["frames"],
            "bytes": body["bytes"],
            "ciphertext_sha256": body["digest"],
            "cleared_sha256": cleared,
            "erase_epoch": body["epoch"],
            "page_copies": body.get("page_copies", "cleared"),
            "steps": [{"step": name, "outcome": "done"} for name in STEPS[:-1]],
            "checks": checks,
            "audit": {"seq": seq, "digest": head.hex()},
        },
        key,
    )
    with core.catalog.write() as connection:
        connection.execute(
            insert(catalog_schema.receipts).values(
                id=intent.id,
                created_us=receipt["finished_us"],
                body=json.dumps(receipt, separators=(",", ":")),
            )
        )
        connection.execute(delete(catalog_schema.intents).where(catalog_schema.intents.c.id == intent.id))
        note(connection, "erased", intent.id, len(intent.selected))
    return receipt


def _signing_key(core: Core) -> bytes:
    with core.catalog.read() as connection:
        sealed = catalog.get_meta(connection, "signing_key") or b""
    return core.master_box.open(sealed, b"mnemos/bank/signing")


def public_key_of(core: Core) -> str:
    """Of the key that the bank signs its receipts with, in base64."""
    return receipts.public_key(_signing_key(core))


def _raise_epoch(core: Core, intent: Intent) -> None:
    if "epoch" not in intent.body:
        with core.catalog.write() as connection:
            intent.body["epoch"] = catalog.raise_epoch(connection)
            intent.save(connection)
    core.forget_keys()


def _namespace(core: Core, intent: Intent) -> Namespace:
    namespace = core.by_id(intent.namespace_id)
    if namespace is None:
        raise BankError(
            f"Erase {intent.id} names a namespace that the catalog lacks. Run `mnemos bank verify`."
        )
    return namespace


def _on_ids(connection: Connection, statement: str, ids: Iterable[str]) -> None:
    connection.execute(text(statement).bindparams(bindparam("ids", expanding=True)), {"ids": list(ids)})
