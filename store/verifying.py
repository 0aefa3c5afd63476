"""Holding catalog, words, frames, keys and the lexical index against each other, both ways."""

import json
from collections.abc import Callable
from functools import partial

from sqlalchemy import Connection, select, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from mnemos.errors import BankError, BankUnreadableError
from mnemos.store import catalog, catalog_schema, words
from mnemos.store.catalog import CatalogMemory, Placed
from mnemos.store.core import Core, Namespace
from mnemos.store.frames import FrameError, check_frame, decode_frame, decode_header
from mnemos.store.payload import unpack_text
from mnemos.store.receipts import broken_link, verify_receipt
from mnemos.store.records import VerifyReport
from mnemos.store.segments import SEGMENT_HEADER_BYTES
from mnemos.store.shard_checks import check_shards, stray_folders
from mnemos.store.verify_findings import Findings, OnProgress
from mnemos.store.words import Filter, Row
from mnemos.store.writing import bank_key

_GAP_BYTES = 1 << 20


def verify(core: Core, deep: bool, progress: OnProgress | None, *, resume: bool = False) -> VerifyReport:
    """Walks the whole bank; `deep` also reads, decrypts and compares every frame.

    `resume` goes on where a walk of the same depth was cut off, unless something was erased since.
    """
    found = Findings.start(core, deep=deep, progress=progress, resume=resume)
    with core.catalog.read() as connection:
        rows = catalog.live_namespaces(connection)
        ends = catalog.segment_ends(connection)
        erased = erased_ids(connection)
        broken = broken_link(connection)
        damaged = connection.execute(text("PRAGMA quick_check(1)")).scalar_one() != "ok"
    if broken is not None:
        found.add("audit-broken", str(broken), "a line of the audit log does not follow from the one before")
    if damaged:
        found.add("corrupt-database", "catalog.db", "SQLite finds its pages damaged")
    names = {number: core.segments.name(number).name for number in ends}
    found.expect([*(row.id for row in rows), *names.values()])
    for row in rows:
        with found.unit(row.id) as is_due:
            if is_due:
                _guarded(found, row.id, partial(_namespace, core, row.id, deep, erased, found))
                found.count("namespaces")
    for number, end in ends.items():
        with found.unit(names[number]) as is_due:
            if is_due:
                _guarded(found, names[number], partial(_segment, core, number, end, deep, found))
                found.count("segments")
    _strays(core, found)
    return found.report()


def _guarded(found: Findings, subject: str, check: Callable[[], None]) -> None:
    try:
        check()
    except (BankError, SQLAlchemyError) as error:
        detail = (
            str(error)
            if isinstance(error, BankError)
            else f"the database can't be read ({type(error).__name__})"
        )
        found.add("unreadable", subject, detail)


def erased_ids(connection: Connection) -> set[str]:
    """Ids that signed receipts say are gone."""
    gone: set[str] = set()
    for body in connection.execute(select(catalog_schema.receipts.c.body)).scalars():
        receipt = json.loads(body)
        gone.update(receipt["erased"], receipt["rewritten"])
    return gone


def _namespace(core: Core, namespace_id: str, deep: bool, erased: set[str], found: Findings) -> None:
    namespace = core.by_id(namespace_id)
    if namespace is None:
        return
    with core.catalog.read() as connection:
        memories = catalog.namespace_memories(connection, namespace_id)
        frames = catalog.namespace_frames(connection, namespace_id)
        row = catalog.namespace_by_id(connection, namespace_id)
        committed = 0 if row is None else row.batch
    with namespace.database.read() as connection:
        if connection.execute(text("PRAGMA quick_check(1)")).scalar_one() != "ok":
            found.add("corrupt-database", f"{namespace_id}.db", "SQLite finds its pages damaged")
        known = {word.id: word for word in words.select_rows(connection, Filter()) if word.batch <= committed}
        buried = set(connection.execute(text("SELECT id FROM memory WHERE erased = 1")).scalars())
    found.count("memories", len(memories))
    waiting = being_erased(core)
    for memory_id in known.keys() - memories.keys() - waiting:
        found.add("orphan-words", memory_id, "the namespace database holds it, the catalog does not")
    for memory_id in memories.keys() - known.keys() - buried - waiting:
        found.add("missing-words", memory_id, "the catalog holds it, the namespace database does not")
    for memory_id in erased & (known.keys() | memories.keys()):
        found.add("present-though-erased", memory_id, "a receipt says that it is gone")
    mismatch = index_mismatch(namespace)
    found.count("indexes")
    if mismatch is not None:
        found.add("index-mismatch", namespace_id, mismatch)
    check_shards(core, namespace, memories.keys(), erased, found)
    lost = {word.id for word in known.values() if word.status == "damaged"}
    for memory_id in sorted(lost):
        found.quarantine(memory_id, "its words are lost; `forget` it, or put a copy of the bank back")
    _frames(core, namespace, memories, known, frames, deep, waiting | lost, found)


def being_erased(core: Core) -> set[str]:
    """Ids of erases that wait to be finished: not damage, but not whole either."""
    with core.catalog.read() as connection:
        bodies = [
            json.loads(body) for body in connection.execute(select(catalog_schema.intents.c.body)).scalars()
        ]
    return {
        i for body in bodies for i in (*body["selected"], *body["rewritten"], *body["rewritten"].values())
    }


def index_mismatch(namespace: Namespace) -> str | None:
    """What the lexical index and the rows disagree in; None when they agree."""
    with namespace.database.read() as connection:
        stray = connection.execute(
            text(
                "SELECT count(*) FROM words_docsize d LEFT JOIN memory m ON m.ordinal = d.id WHERE "
                "m.ordinal IS NULL"
            )
        ).scalar_one()
        lost = connection.execute(
            text(
                "SELECT count(*) FROM memory m LEFT JOIN words_docsize d ON m.ordinal = d.id WHERE d.id IS "
                "NULL"
            )
        ).scalar_one()
    if stray or lost:
        return f"{stray} entries without a memory, {lost} memories without an entry"
    if namespace.read_only:
        return None
    try:
        with namespace.database.write() as connection:
            connection.execute(text("INSERT INTO words (words, rank) VALUES ('integrity-check', 1)"))
    except DBAPIError:
        return "the lexical index and the texts disagree"
    return None


def _frames(
    core: Core,
    namespace: Namespace,
    memories: dict[str, CatalogMemory],
    known: dict[str, Row],
    frames: list[Placed],
    deep: bool,
    waiting: set[str],
    found: Findings,
) -> None:
    with core.catalog.read() as connection:
        pages = {page.id: page for page in catalog.pages(connection, namespace.id)}
    live = {(frame.owner, frame.kind) for frame in frames if frame.live}
    for memory in memories.values():
        if memory.id in waiting:
            continue
        if (memory.id, "text") not in live:
            found.add("missing-frame", memory.id, "it has no text frame")
        traces = ("kv", "route") if memory.kv_bytes else ("route",)  # a faint memory has no KV
        if memory.trace_fingerprint is not None and not {(memory.id, kind) for kind in traces} <= live:
            found.add("missing-frame", memory.id, "it has a trace without its frames")
    keys: dict[str, bytes | None] = {}
    for memory in memories.values():
        if namespace.keys is None or memory.id in waiting:
            continue
        page = None if memory.page_id is None else pages.get(memory.page_id)
        try:
            keys[memory.id] = (
                None if page is None or memory.slot is None else namespace.keys.key(page, memory.slot)
            )
        except BankUnreadableError as error:
            found.add("undecryptable", memory.id, str(error))
            continue
        found.count("keys")
        if keys[memory.id] is None:
            found.add("undecryptable", memory.id, "it has no data key")
    for frame in sorted(frames, key=lambda frame: (frame.segment, frame.start)):
        if not frame.live or frame.owner in waiting:
            continue
        found.count("frames")
        if found.is_past(frame.segment, frame.start):
            continue
        if core.encrypted and keys.get(frame.owner) is None:
            continue
        _frame(core, frame, keys.get(frame.owner), known.get(frame.owner), deep, found)


def _frame(
    core: Core, frame: Placed, key: bytes | None, row: Row | None, deep: bool, found: Findings
) -> None:
    try:
        data = core.segments.read(frame.segment, frame.start, frame.length if deep else min(frame.length, 72))
        header = decode_header(data)
        if header.checksum != frame.digest[:16]:
            raise FrameError("corrupt-frame", "it is not the frame that the catalog knows")
        if not deep:
            if (header.owner, header.kind, header.frame_length) != (frame.owner, frame.kind, frame.length):
                raise FrameError("corrupt-frame", "another frame lies where this one should be")
            if frame.start + frame.length > core.segments.size(frame.segment):
                raise FrameError("missing-frame", "the frame is cut short")
            return
        check_frame(data, frame.kind, frame.owner)
        payload = decode_frame(data, frame.kind, frame.owner, key)
        if frame.kind == "text" and row is not None:
            kept, _ = unpack_text(payload, frame.owner)
            if not same_words(kept, row):
                raise FrameError("words-differ", "the frame and the namespace database hold different words")
    except FrameError as error:
        found.add(error.kind, frame.owner, f"{frame.kind} frame: {error}")
    except BankUnreadableError as error:
        found.add("missing-frame", frame.owner, str(error))


def same_words(kept: Row, row: Row) -> bool:
    return (kept.text, kept.reply, kept.title, kept.source) == (row.text, row.reply, row.title, row.source)


def _segment(core: Core, number: int, end: int, deep: bool, found: Findings) -> None:
    size = core.segments.size(number)
    name = core.segments.name(number).name
    if size < end:
        found.add("missing-segment" if size == 0 else "short-segment", name, f"{size:,} bytes of {end:,}")
        return
    if core.segments.read(number, 0, SEGMENT_HEADER_BYTES) != core.segments.header(number):
        found.add("corrupt-segment", name, "its header is not this bank's")
    if not deep:
        return
    with core.catalog.read() as connection:
        frames = catalog.segment_frames(connection, number)
        owners = set(catalog.get_memories(connection, [frame.owner for frame in frames]))
        key = bank_key(core, connection)
    at = SEGMENT_HEADER_BYTES
    for frame in frames:
        if frame.owner not in owners and frame.owner != core.bank_id:
            found.add("orphan-frame", frame.owner, "a frame without its memory")
        if frame.owner == core.bank_id and frame.live:
            found.count("frames")
            _frame(core, frame, key, None, deep, found)
        _gap(core, number, at, frame.start, found)
        at = max(at, frame.start + frame.length)
    _gap(core, number, at, end, found)


def _gap(core: Core, number: int, start: int, end: int, found: Findings) -> None:
    at = first_stray_byte(core, number, start, end)
    if at is not None:
        found.add("orphan-frame", core.segments.name(number).name, f"bytes at {at:,} that no row knows of")


def first_stray_byte(core: Core, number: int, start: int, end: int) -> int | None:
    """What lies between the frames that the catalog knows must be zeros. Where, to a mebibyte, it isn't."""
    for at in range(start, end, _GAP_BYTES):
        size = min(_GAP_BYTES, end - at)
        if core.segments.read(number, at, size) != bytes(size):
            return at
    return None


def _strays(core: Core, found: Findings) -> None:
    with core.catalog.read() as connection:
        known = set(connection.execute(select(catalog_schema.namespaces.c.id)).scalars())
        bodies = list(connection.execute(select(catalog_schema.receipts.c.body)).scalars())
    for folder in ("namespaces", "keys"):
        for path in (core.path / folder).iterdir():
            if path.name.split(".")[0] not in known:
                found.add("orphan-file", f"{folder}/{path.name}", "no namespace of the catalog owns it")
    for name in stray_folders(core, known):
        found.add("orphan-file", f"index/{name}", "no namespace of the catalog owns it")
    for body in bodies:
        found.count("receipts")
        receipt = json.loads(body)
        if not verify_receipt(receipt):
            found.add("receipt-forged", str(receipt.get("id")), "its signature does not hold")
