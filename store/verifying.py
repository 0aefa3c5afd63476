"""Holding catalog, words, frames, keys and the lexical index against each other, both ways."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from sqlalchemy import Connection, select, text
from sqlalchemy.exc import DBAPIError

from mnemos.errors import BankError, BankUnreadableError
from mnemos.store import catalog, catalog_schema, words
from mnemos.store.catalog import CatalogMemory, Placed
from mnemos.store.core import Core, Namespace
from mnemos.store.frames import FrameError, check_frame, decode_frame, decode_header
from mnemos.store.payload import unpack_text
from mnemos.store.receipts import broken_link, verify_receipt
from mnemos.store.records import Problem, VerifyReport
from mnemos.store.segments import SEGMENT_HEADER_BYTES
from mnemos.store.words import Filter, Row

OnProgress = Callable[[int, int], None]  # steps done, steps in all
_GAP_BYTES = 1 << 20


@dataclass
class _Findings:
    problems: list[Problem] = field(default_factory=list)
    checked: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, subject: str, detail: str) -> None:
        self.problems.append(Problem(kind, subject, detail))

    def count(self, what: str, number: int = 1) -> None:
        self.checked[what] = self.checked.get(what, 0) + number


def verify(core: Core, deep: bool, progress: OnProgress | None) -> VerifyReport:
    """Walks the whole bank; `deep` also reads, decrypts and compares every frame."""
    found = _Findings()
    with core.catalog.read() as connection:
        rows = catalog.live_namespaces(connection)
        ends = catalog.segment_ends(connection)
        erased = _erased_ids(connection)
        broken = broken_link(connection)
        damaged = connection.execute(text("PRAGMA quick_check(1)")).scalar_one() != "ok"
    if broken is not None:
        found.add("audit-broken", str(broken), "a line of the audit log does not follow from the one before")
    if damaged:
        found.add("corrupt-database", "catalog.db", "SQLite finds its pages damaged")
    total, done = len(rows) + len(ends), 0
    for row in rows:
        _guarded(found, row.id, partial(_namespace, core, row.id, deep, erased, found))
        found.count("namespaces")
        done += 1
        _tell(progress, done, total)
    for number, end in ends.items():
        _guarded(found, core.segments.name(number).name, partial(_segment, core, number, end, deep, found))
        found.count("segments")
        done += 1
        _tell(progress, done, total)
    _strays(core, found)
    return VerifyReport(
        ok=not found.problems, checked=dict(sorted(found.checked.items())), problems=tuple(found.problems)
    )


def _tell(progress: OnProgress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)


def _guarded(found: _Findings, subject: str, check: Callable[[], None]) -> None:
    try:
        check()
    except (BankError, DBAPIError) as error:
        detail = (
            str(error)
            if isinstance(error, BankError)
            else f"the database can't be read ({type(error.orig).__name__})"
        )
        found.add("unreadable", subject, detail)


def _erased_ids(connection: Connection) -> set[str]:
    """Ids that signed receipts say are gone."""
    gone: set[str] = set()
    for body in connection.execute(select(catalog_schema.receipts.c.body)).scalars():
        receipt = json.loads(body)
        gone.update(receipt["erased"], receipt["rewritten"])
    return gone


def _namespace(core: Core, namespace_id: str, deep: bool, erased: set[str], found: _Findings) -> None:
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
    waiting = _being_erased(core)
    for memory_id in known.keys() - memories.keys() - waiting:
        found.add("orphan-words", memory_id, "the namespace database holds it, the catalog does not")
    for memory_id in memories.keys() - known.keys() - buried - waiting:
        found.add("missing-words", memory_id, "the catalog holds it, the namespace database does not")
    for memory_id in erased & (known.keys() | memories.keys()):
        found.add("present-though-erased", memory_id, "a receipt says that it is gone")
    _index(namespace, found)
    _frames(core, namespace, memories, known, frames, deep, waiting, found)


def _being_erased(core: Core) -> set[str]:
    """Ids of erases that wait to be finished: not damage, but not whole either."""
    with core.catalog.read() as connection:
        bodies = [
            json.loads(body) for body in connection.execute(select(catalog_schema.intents.c.body)).scalars()
        ]
    return {
        i for body in bodies for i in (*body["selected"], *body["rewritten"], *body["rewritten"].values())
    }


def _index(namespace: Namespace, found: _Findings) -> None:
    found.count("indexes")
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
        found.add(
            "index-mismatch",
            namespace.id,
            f"{stray} entries without a memory, {lost} memories without an entry",
        )
        return
    if namespace.read_only:
        return
    try:
        with namespace.database.write() as connection:
            connection.execute(text("INSERT INTO words (words, rank) VALUES ('integrity-check', 1)"))
    except DBAPIError:
        found.add("index-mismatch", namespace.id, "the lexical index and the texts disagree")


def _frames(
    core: Core,
    namespace: Namespace,
    memories: dict[str, CatalogMemory],
    known: dict[str, Row],
    frames: list[Placed],
    deep: bool,
    waiting: set[str],
    found: _Findings,
) -> None:
    with core.catalog.read() as connection:
        pages = {page.id: page for page in catalog.pages(connection, namespace.id)}
    live = {(frame.owner, frame.kind) for frame in frames if frame.live}
    for memory in memories.values():
        if memory.id in waiting:
            continue
        if (memory.id, "text") not in live:
            found.add("missing-frame", memory.id, "it has no text frame")
        if memory.trace_fingerprint is not None and not {(memory.id, "kv"), (memory.id, "route")} <= live:
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
        if core.encrypted and keys.get(frame.owner) is None:
            continue
        _frame(core, frame, keys.get(frame.owner), known.get(frame.owner), deep, found)


def _frame(
    core: Core, frame: Placed, key: bytes | None, row: Row | None, deep: bool, found: _Findings
) -> None:
    try:
        data = core.segments.read(frame.segment, frame.start, frame.length if deep else min(frame.length, 72))
        if not deep:
            header = decode_header(data)
            if (header.owner, header.kind, header.frame_length) != (frame.owner, frame.kind, frame.length):
                raise FrameError("corrupt-frame", "another frame lies where this one should be")
            if header.checksum != frame.digest[:16]:
                raise FrameError("corrupt-frame", "it is not the frame that the catalog knows")
            if frame.start + frame.length > core.segments.size(frame.segment):
                raise FrameError("missing-frame", "the frame is cut short")
            return
        check_frame(data, frame.kind, frame.owner)
        payload = decode_frame(data, frame.kind, frame.owner, key)
        if frame.kind == "text" and row is not None:
            kept, _ = unpack_text(payload, frame.owner)
            if (kept.text, kept.reply, kept.title, kept.source) != (
                row.text,
                row.reply,
                row.title,
                row.source,
            ):
                raise FrameError("words-differ", "the frame and the namespace database hold different words")
    except FrameError as error:
        found.add(error.kind, frame.owner, f"{frame.kind} frame: {error}")
    except BankUnreadableError as error:
        found.add("missing-frame", frame.owner, str(error))


def _segment(core: Core, number: int, end: int, deep: bool, found: _Findings) -> None:
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
    at = SEGMENT_HEADER_BYTES
    for frame in frames:
        if frame.owner not in owners and frame.owner != core.bank_id:
            found.add("orphan-frame", frame.owner, "a frame without its memory")
        _gap(core, number, at, frame.start, found)
        at = max(at, frame.start + frame.length)
    _gap(core, number, at, end, found)


def _gap(core: Core, number: int, start: int, end: int, found: _Findings) -> None:
    """What lies between the frames that the catalog knows must be zeros."""
    for at in range(start, end, _GAP_BYTES):
        size = min(_GAP_BYTES, end - at)
        if core.segments.read(number, at, size) != bytes(size):
            found.add(
                "orphan-frame", core.segments.name(number).name, f"bytes at {at:,} that no row knows of"
            )
            return


def _strays(core: Core, found: _Findings) -> None:
    with core.catalog.read() as connection:
        known = set(connection.execute(select(catalog_schema.namespaces.c.id)).scalars())
        bodies = list(connection.execute(select(catalog_schema.receipts.c.body)).scalars())
    for folder in ("namespaces", "keys"):
        for path in (core.path / folder).iterdir():
            if path.name.split(".")[0] not in known:
                found.add("orphan-file", f"{folder}/{path.name}", "no namespace of the catalog owns it")
    for body in bodies:
        found.count("receipts")
        receipt = json.loads(body)
        if not verify_receipt(receipt):
            found.add("receipt-forged", str(receipt.get("id")), "its signature does not hold")
