"""Merging archived memories into a namespace: once each, and never what was erased here before."""

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

from sqlalchemy import Connection, select, text

from mnemos.errors import NotFoundError
from mnemos.store import catalog, catalog_schema, words
from mnemos.store.archive_records import ArchivedMemory, Group, Merged
from mnemos.store.archive_rows import row_of, write_rows
from mnemos.store.core import Core, Namespace
from mnemos.store.ids import id_from_bytes, new_id
from mnemos.store.intents import repeats
from mnemos.store.records import MemoryDraft, TraceDraft, UseRecord
from mnemos.store.recovery import settle
from mnemos.store.words import Row, to_us
from mnemos.store.writing import check_draft, put_traces


class Merger:
    """Merges one archive, group by group; each group is durable when `merge` returns."""

    def __init__(self, core: Core, *, restore_erased: bool = False) -> None:
        self._core = core
        self._restore = restore_erased
        self._epoch = -1
        self._erased: frozenset[str] = frozenset()
        self._same: dict[str, str] = {}  # id in the archive -> id here, of what was known by content
        self._withheld: set[str] = set()  # ids here of exchanges whose reply was left out

    def merge(self, name: str, group: Group) -> Merged:
        """Adds what the namespace `name` lacks. InvalidTextError for what can't be a memory, BankError."""
        for memory in group.memories:
            check_draft(memory.draft)
        done = Merged()
        with self._core.writing():
            self._look_at_receipts()
            namespace = self._core.find(name)
            if namespace is None:
                if all(self._is_out(memory) for memory in group.memories):
                    for memory in group.memories:  # nothing comes of it, so not even its name is kept
                        self._count_out(memory, done)
                    return done
                namespace = self._core.ensure(name)
            batch = settle(self._core, namespace) + 1
            chosen, dropped = self._choose(namespace, group, done)
            if chosen:
                done.sessions += write_rows(self._core, namespace, batch, chosen, group.sessions)
            self._clear_titles(namespace, group, dropped)
        return done

    def put_traces(self, name: str, group: Group, done: Merged) -> int:
        """Stores the traces of what `merge` added; how many. A memory erased meanwhile is passed over."""
        drafts = [
            TraceDraft(here, trace.fingerprint, trace.tokens, trace.kv, trace.route)
            for here, there in done.added.items()
            if here not in self._withheld and (trace := group.traces.get(there)) is not None
        ]
        if not drafts:
            return 0
        with suppress(NotFoundError):  # then they are made again from the text
            put_traces(self._core, name, drafts)
            return len(drafts)
        return 0

    def _choose(
        self, namespace: Namespace, group: Group, done: Merged
    ) -> tuple[list[tuple[Row, list[UseRecord]]], list[ArchivedMemory]]:
        """Rows to write, without ordinals and batch, and the memories that were erased here before."""
        chosen: list[tuple[Row, list[UseRecord]]] = []
        dropped: list[ArchivedMemory] = []
        taken: set[str] = set()
        by_content = self._known_content(namespace, group.memories)
        held = _Held(self._core, namespace, (memory.id for memory in group.memories if memory.id))
        for memory in group.memories:
            tag = _tag(namespace, group, memory)
            if tag is not None and tag in by_content:
                done.known += 1
                if memory.id is not None:
                    self._same[memory.id] = by_content[tag]
                continue
            here, was_erased, is_known = new_id(), False, False
            if memory.id is not None:
                here, was_erased, is_known = self._place(namespace, held, memory.id)
            if is_known or here in taken:
                done.known += 1
                if self._uses(namespace, held, memory)[1]:  # withheld by an import that did not get far
                    self._withheld.add(here)
            elif was_erased and not self._restore:
                done.erased_before += 1
                dropped.append(memory)
            elif _is_over(memory.draft):
                done.expired += 1
            else:
                row, uses = self._row(namespace, held, memory, here, tag, done)
                chosen.append((row, uses))
                taken.add(here)
                done.added[here] = memory.id or ""
                if tag is not None:
                    by_content[tag] = here
        return chosen, dropped

    def _row(
        self,
        namespace: Namespace,
        held: "_Held",
        memory: ArchivedMemory,
        here: str,
        tag: bytes | None,
        done: Merged,
    ) -> tuple[Row, list[UseRecord]]:
        uses, is_tainted = self._uses(namespace, held, memory)
        reply = memory.draft.reply or None
        if is_tainted:
            reply, uses = None, []
            self._withheld.add(here)
            done.replies_withheld += 1
        return row_of(memory, here, tag, reply), uses

    def _uses(
        self, namespace: Namespace, held: "_Held", memory: ArchivedMemory
    ) -> tuple[list[UseRecord], bool]:
        """What the reply was made with, by the ids here; and whether any of that was erased here."""
        uses: dict[str, UseRecord] = {}
        is_tainted = False
        for use in memory.uses:
            used, was_erased, is_known = self._same.get(use.memory_id, ""), False, True
            if not used:
                used, was_erased, is_known = self._place(namespace, held, use.memory_id)
            is_tainted = is_tainted or used in self._withheld
            is_tainted = is_tainted or (was_erased and not is_known and not self._restore)
            # A use whose memory is not here yet is kept: it may come with another archive.
            uses[used] = replace(use, memory_id=used)
        return list(uses.values()), is_tainted

    def _place(self, namespace: Namespace, held: "_Held", archived_id: str) -> tuple[str, bool, bool]:
        """The id that a memory has or gets here, whether it was erased here, and whether it is here.

        It keeps its id, unless that is taken by another namespace or was erased and is to be restored: a
        receipt says that this id is gone. Then it gets one that follows from it, the same at every import.
        """
        was_erased = False
        for turn in range(1 << 16):
            here = archived_id if turn == 0 else _derived(namespace, archived_id, turn)
            where = held.namespace_of(here)
            if where == namespace.id and here not in self._erased:
                return here, False, True
            if here in self._erased:
                was_erased = True
            elif where is None:
                return here, was_erased, False
        raise AssertionError("unreachable: no id is erased so often")

    def _known_content(self, namespace: Namespace, memories: Iterable[ArchivedMemory]) -> dict[bytes, str]:
        tags: set[bytes] = set()
        for memory in memories:
            if memory.content_tag is not None:
                tags.add(memory.content_tag)
            if memory.draft.content_key is not None:
                tags.add(namespace.content_tag(memory.draft.content_key))
        with namespace.database.read() as connection:
            return words.ids_by_content(connection, tags)

    def _look_at_receipts(self) -> None:
        with self._core.catalog.read() as connection:
            epoch = catalog.erase_epoch(connection)
            if epoch != self._epoch:
                self._erased, self._epoch = _erased_ids(connection), epoch

    def _is_out(self, memory: ArchivedMemory) -> bool:
        return (memory.id in self._erased and not self._restore) or _is_over(memory.draft)

    def _count_out(self, memory: ArchivedMemory, done: Merged) -> None:
        if memory.id in self._erased and not self._restore:
            done.erased_before += 1
        else:
            done.expired += 1

    def _clear_titles(self, namespace: Namespace, group: Group, dropped: Sequence[ArchivedMemory]) -> None:
        """Titles of the archive that repeat what was erased here don't come back with other memories."""
        titles: set[tuple[str, str]] = set()
        for memory in dropped:
            session = group.sessions.get(memory.draft.session_id or "")
            if session is not None and session.title and repeats(session.title, memory.draft):
                titles.add((session.id, session.title))
        if titles:
            with namespace.database.write() as connection:
                for session_id, title in titles:
                    connection.execute(
                        text("UPDATE session SET title = NULL WHERE id = :id AND title = :title"),
                        {"id": session_id, "title": title},
                    )


class _Held:
    """Which namespace holds an id, if any."""

    def __init__(self, core: Core, namespace: Namespace, ids: Iterable[str]) -> None:
        self._core = core
        self._owners: dict[str, str | None] = dict.fromkeys(ids)
        with core.catalog.read() as connection:
            for memory in catalog.get_memories(connection, self._owners).values():
                self._owners[memory.id] = memory.namespace_id

    def namespace_of(self, memory_id: str) -> str | None:
        if memory_id not in self._owners:
            with self._core.catalog.read() as connection:
                found = catalog.get_memories(connection, [memory_id])
            self._owners[memory_id] = found[memory_id].namespace_id if found else None
        return self._owners[memory_id]


def _erased_ids(connection: Connection) -> frozenset[str]:
    """Ids that a receipt says are gone, and those whose erase is under way."""
    gone: set[str] = set()
    for body in connection.execute(select(catalog_schema.receipts.c.body)).scalars():
        receipt = json.loads(body)
        gone.update(receipt["erased"], receipt["rewritten"])
    for body in connection.execute(select(catalog_schema.intents.c.body)).scalars():
        intent = json.loads(body)
        gone.update(intent["selected"], intent["rewritten"])
    return frozenset(gone)


def _derived(namespace: Namespace, archived_id: str, turn: int) -> str:
    return id_from_bytes(namespace.content_tag(f"mnemos/import/{turn}/{archived_id}".encode())[:16])


def _tag(namespace: Namespace, group: Group, memory: ArchivedMemory) -> bytes | None:
    if memory.content_tag is not None and group.namespace_id == namespace.id:
        return memory.content_tag
    key = memory.draft.content_key
    return None if key is None else namespace.content_tag(key)


def _is_over(draft: MemoryDraft) -> bool:
    return draft.expires_at is not None and to_us(draft.expires_at) <= catalog.now_us()
