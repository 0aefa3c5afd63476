"""Writing memories into an archive, a group at a time."""

import base64
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from json import loads
from typing import Any

from mnemos.errors import BankUnreadableError, NotFoundError, StalePlanError
from mnemos.store import archive_lines as lines
from mnemos.store import catalog, reading, receipts, words
from mnemos.store.archive_records import Exported
from mnemos.store.archive_stream import LineWriter
from mnemos.store.catalog import CatalogMemory
from mnemos.store.core import Core, Namespace
from mnemos.store.records import SessionRecord
from mnemos.store.words import Filter, Row, to_us

_PAGE = lines.GROUP_MEMORIES
OnProgress = Callable[[int, int], None]  # memories written, memories of the namespaces


def find_any(core: Core, names: Sequence[str], chosen: Filter) -> int:
    """How many memories the namespaces hold. NotFoundError when one is unknown or nothing is chosen."""
    total, is_found = 0, False
    for name in names:
        namespace = core.get(name)
        with namespace.database.read() as connection:
            total += words.count(connection)
        is_found = is_found or next(_pages(core, name, chosen), None) is not None
    if not is_found:
        raise NotFoundError("no memory matches, so there is nothing to export; nothing was written")
    return total


class Exporter:
    """One export. The archive is whole when `run` returns; short of that it is worth nothing."""

    def __init__(
        self,
        core: Core,
        out: Any,
        chosen: Filter,
        *,
        traces: bool,
        is_filtered: bool,
        model: str | None,
        fingerprint: str | None,
        on_progress: OnProgress | None,
    ) -> None:
        self._core = core
        self._lines = LineWriter(out)
        self._chosen = chosen
        self._traces = traces
        self._header = lines.HeaderLine(
            created_us=catalog.now_us(),
            bank=core.bank_id,
            traces=traces,
            hidden=chosen.include_hidden,
            filtered=is_filtered,
            model=model if traces else None,
            fingerprint=fingerprint if traces else None,
        )
        self._on_progress = on_progress
        self._sessions: set[str] = set()
        self._memories = self._trace_count = self._left_out = 0

    def run(self, names: Sequence[str], total: int) -> Exported:
        """StalePlanError when something was erased meanwhile: it may be in what was written."""
        epoch = _epoch(self._core)
        self._lines.line(self._header)
        spaces = 0
        for name in names:
            before = self._memories
            for namespace, rows in _pages(self._core, name, self._chosen):
                if self._memories == before:
                    self._lines.line(lines.NamespaceLine(name=name, id=namespace.id))
                    spaces += 1
                self._page(namespace, rows)
                if self._on_progress is not None:
                    self._on_progress(self._memories, max(total, self._memories))
        if _epoch(self._core) != epoch:
            raise StalePlanError(
                "memories were erased while the export ran, so it may hold them; delete what was written and "
                "export again"
            )
        self._lines.end(namespaces=spaces, memories=self._memories, traces=self._trace_count)
        return Exported(spaces, len(self._sessions), self._memories, self._trace_count, self._left_out)

    def _page(self, namespace: Namespace, rows: Sequence[Row]) -> None:
        with self._core.catalog.read() as connection:
            known = catalog.get_memories(connection, [row.id for row in rows])
        with namespace.database.read() as connection:
            uses = {row.id: words.uses_of(connection, row.id) for row in rows if row.kind == "exchange"}
            named = {row.session_id for row in rows if row.session_id is not None}
            sessions = {
                record.id: record
                for session_id in named
                for record in words.sessions(connection, namespace.name, session_id)
            }
        written: set[str] = set()  # sessions of the group
        text_bytes = trace_bytes = group = 0
        for row in rows:
            session = sessions.get(row.session_id or "")
            if session is not None and session.id not in written:
                written.add(session.id)
                self._sessions.add(session.id)
                text_bytes += self._lines.line(_session_line(session))
            memory = known.get(row.id)
            if memory is None:  # erased since the page was read: the export will be found stale
                continue
            text_bytes += self._lines.line(_memory_line(row, uses.get(row.id, [])))
            if self._traces and memory.trace_fingerprint is not None:
                trace_bytes += self._trace(namespace, memory)
            group += 1
            self._memories += 1
            if text_bytes > lines.GROUP_TEXT_BYTES or trace_bytes > lines.GROUP_TRACE_BYTES:
                self._lines.check()
                written, text_bytes, trace_bytes, group = set(), 0, 0, 0
        if group:
            self._lines.check()

    def _trace(self, namespace: Namespace, memory: CatalogMemory) -> int:
        """Bytes of the trace; 0 when it was left out."""
        try:
            kv = reading.read_frame(self._core, namespace, memory.id, "kv")
            route = reading.read_frame(self._core, namespace, memory.id, "route")
        except (BankUnreadableError, NotFoundError):
            self._left_out += 1
            return 0
        size = len(kv) + len(route)
        if size > lines.MAX_TRACE_BYTES or not kv or not route or memory.tokens < 1:
            self._left_out += 1
            return 0
        payload = kv + route
        self._lines.line(
            lines.TraceLine(
                memory=memory.id,
                fingerprint=memory.trace_fingerprint or "",
                tokens=memory.tokens,
                kv_bytes=len(kv),
                route_bytes=len(route),
                sha256=hashlib.sha256(payload).hexdigest(),
            )
        )
        for start in range(0, size, lines.PART_BYTES):
            part = payload[start : start + lines.PART_BYTES]
            self._lines.line(lines.PartLine(data=base64.b64encode(part).decode("ascii")))
        self._trace_count += 1
        return size


def note_export(core: Core, names: Sequence[str]) -> None:
    """A line of the audit log for each namespace, before any word leaves it. Takes the writer's lock."""
    with core.writing():
        found = [core.get(name).id for name in names]
        with core.catalog.write() as connection:
            for namespace_id in found:
                receipts.note(connection, "export", namespace_id)


def _pages(core: Core, name: str, chosen: Filter) -> Iterator[tuple[Namespace, list[Row]]]:
    """The chosen rows, in the order of writing, never an expired one."""
    after = 0
    while True:
        namespace = core.get(name)  # anew for each page: another may have closed its files meanwhile
        with namespace.database.read() as connection:
            rows = words.select_rows(connection, replace(chosen, after=after), limit=_PAGE)
        if not rows:
            return
        after = rows[-1].ordinal
        now = catalog.now_us()
        live = [row for row in rows if row.expires_us is None or row.expires_us > now]
        if live:
            yield namespace, live


def _epoch(core: Core) -> int:
    with core.catalog.read() as connection:
        return catalog.erase_epoch(connection)


def _session_line(record: SessionRecord) -> lines.SessionLine:
    return lines.SessionLine(
        id=record.id,
        title=record.title,
        created_us=to_us(record.created_at),
        updated_us=to_us(record.updated_at),
    )


def _memory_line(row: Row, uses: Sequence[Any]) -> lines.MemoryLine:
    return lines.MemoryLine(
        id=row.id,
        kind=row.kind,  # type: ignore[arg-type]
        text=row.text,
        reply=row.reply,
        speaker=row.speaker,
        title=row.title,
        source=row.source,
        session=row.session_id,
        created_us=row.created_us,
        expires_us=row.expires_us,
        tags=loads(row.tags),
        status=row.status,  # type: ignore[arg-type]
        pinned=bool(row.pinned),
        hidden=bool(row.hidden),
        content=None if row.content_tag is None else row.content_tag.hex(),
        uses=[
            lines.UseLine(
                memory=use.memory_id,
                rank=use.rank,
                score=use.score,
                signals=dict(use.signals),
                attention=use.attention,
                cited=use.cited,
            )
            for use in uses
        ],
    )
