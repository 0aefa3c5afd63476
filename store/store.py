"""`Store`: the bank on disk, as the rooms above see it."""

import builtins
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from mnemos.errors import BankError, BankUnreadableError, ErasePendingError
from mnemos.store import (
    catalog,
    lexical,
    lookups,
    nearby,
    phrases,
    reading,
    rekeying,
    restating,
    rewriting,
    upkeep,
    words,
    writing,
)
from mnemos.store.candidates import Candidates, candidates
from mnemos.store.core import Core
from mnemos.store.ids import check_namespace
from mnemos.store.keys import KeyProvider, LockKind, kind_of
from mnemos.store.lock import DEFAULT_WAIT_S
from mnemos.store.migrations import version
from mnemos.store.opening import open_core
from mnemos.store.receipts import os_user
from mnemos.store.records import (
    MemoryDraft,
    MemoryRecord,
    Status,
    UseRecord,
)
from mnemos.store.recovery import recover
from mnemos.store.selector_sql import resolved
from mnemos.store.selectors import Condition
from mnemos.store.store_browsing import BrowsingStore
from mnemos.store.store_care import CareStore
from mnemos.store.store_erasing import ErasingStore
from mnemos.store.store_fading import FadingStore
from mnemos.store.store_sessions import SessionStore
from mnemos.store.store_traces import TraceStore
from mnemos.store.words import Filter

if TYPE_CHECKING:
    pass

__all__ = ["Store"]


class Store(TraceStore, FadingStore, ErasingStore, SessionStore, CareStore, BrowsingStore):
    """A bank: memories in namespaces, durable when a call returns, gone when an erase has its receipt.

    Safe to call from several threads; several processes may read, one writes at a time.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._seen_epoch = -1

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        keys: KeyProvider | None = None,
        encrypted: bool = True,
        read_only: bool = False,
        create: bool = True,
        lock_wait_s: float = DEFAULT_WAIT_S,
        actor: str = "api",
    ) -> "Store":
        """Opens the bank at `path`, or makes one. `encrypted` counts only for a new bank. `actor` is noted in
        the audit log with the user of the operating system.

        Raises NotFoundError where there is none and none may be made, a BankError where it can't be used.
        """
        core = open_core(
            Path(path).absolute(),
            keys=keys,
            encrypted=encrypted,
            read_only=read_only,
            create=create,
            wait_s=lock_wait_s,
        )
        core.catalog.actor = f"{actor}:{os_user()}"
        store = cls(core)
        try:
            if not read_only:
                with core.reading():
                    recover(core)
                    rekeying.finish_at_open(core)
                # An erase that damage holds up is tried again at the next open: `verify` must get this far.
                with suppress(ErasePendingError, BankUnreadableError):
                    store.resume()
                    rewriting.rewrite_due(core, rewriting.AT_OPEN_BYTES)
        except BaseException:
            core.close()
            raise
        return store

    def close(self) -> None:
        """Lets go of the bank. What an erase left to be written anew is, unless another process is at it."""
        try:
            if not self._core.read_only and not self._core.is_closed:
                with suppress(BankError):  # it stays due
                    rewriting.rewrite_due(self._core, rewriting.AT_CLOSE_BYTES)
        finally:
            self._core.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._core.close()

    @property
    def path(self) -> Path:
        return self._core.path

    @property
    def bank_id(self) -> str:
        return self._core.bank_id

    @property
    def read_only(self) -> bool:
        return self._core.read_only

    @property
    def encrypted(self) -> bool:
        return self._core.encrypted

    @property
    def key_location(self) -> str:
        """Where the master key is, for people."""
        return self._core.key_location

    @property
    def lock_kind(self) -> LockKind | None:
        """What kind of thing gives the master key; None where the bank is not encrypted."""
        return None if self._core.provider is None else kind_of(self._core.provider)

    @property
    def version(self) -> int:
        """Of the bank's format."""
        return version(self._core.catalog)

    def erase_epoch(self) -> int:
        """Rises with every erase, of any process. Whoever caches memories drops them when it moved."""
        with self._core.reading():
            epoch = lookups.erase_epoch(self._core.catalog)
        if epoch != self._seen_epoch:
            self._core.forget_keys()
            self._seen_epoch = epoch
        return epoch

    # -- namespaces and settings

    def namespaces(self) -> builtins.list[str]:
        with self._core.reading():
            return self._core.namespace_names()

    def ensure_namespace(self, name: str) -> None:
        check_namespace(name)
        with self._core.writing():
            self._core.ensure(name)

    def get_setting(self, key: str) -> str | None:
        with self._core.reading():
            return lookups.setting(self._core.catalog, key)

    def set_setting(self, key: str, value: str) -> None:
        """A setting of the whole bank. It is not encrypted: no words."""
        with self._core.writing(), self._core.catalog.write() as connection:
            catalog.set_setting(connection, key, value)

    # -- memories

    def add(self, namespace: str, drafts: Sequence[MemoryDraft]) -> builtins.list[MemoryRecord]:
        """Stores the drafts as one durable group; their memories, in order. Makes the namespace if need be.

        On InvalidTextError, InvalidNamespaceError, BankFullError or BankLockedError nothing was stored.
        """
        check_namespace(namespace)
        if not drafts:
            return []
        ids, rows = writing.add(self._core, namespace, drafts)
        known = [memory_id for memory_id in ids if memory_id not in rows]
        records = (
            {record.id: record for record in reading.by_id(self._core, namespace, known)} if known else {}
        )
        return [
            reading.new_record(namespace, rows[memory_id]) if memory_id in rows else records[memory_id]
            for memory_id in ids
        ]

    def complete(
        self,
        namespace: str,
        memory_id: str,
        reply: str,
        status: Status = "complete",
        uses: Sequence[UseRecord] = (),
        *,
        tags: Sequence[str] | None = None,
        expires_at: datetime | None = None,
    ) -> MemoryRecord:
        """Adds the model's words to a memory, and which memories they were made with; durable. Tags and an
        expiry, where given, take the place of the memory's own.

        Raises NotFoundError when the memory, or one of those used, was erased meanwhile.
        """
        full_id = writing.complete(
            self._core,
            namespace,
            memory_id,
            reply,
            status,
            uses,
            tags,
            None if expires_at is None else words.to_us(expires_at),
        )
        return reading.by_id(self._core, namespace, [full_id])[0]

    def get(self, namespace: str, memory_id: str) -> MemoryRecord:
        """By id or prefix (4 characters at least). NotFoundError, AmbiguousIdError."""
        with self._core.reading():
            return reading.get(self._core, self._core.get(namespace), memory_id)

    def records(self, namespace: str, ids: Sequence[str]) -> builtins.list[MemoryRecord]:
        """Memories by their whole ids, in that order; those that are gone are left out."""
        with self._core.reading():
            found = self._core.find(namespace)
            return [] if found is None else reading.present(self._core, found, ids)

    def list(
        self,
        namespace: str,
        *,
        session_id: str | None = None,
        tags: Sequence[str] | None = None,
        matching: str | None = None,
        source: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        where: Condition | None = None,
        include_hidden: bool = False,
        kinds: Sequence[str] | None = None,
        newest_first: bool = True,
        limit: int | None = None,
        offset: int = 0,
    ) -> builtins.list[MemoryRecord]:
        """Memories that meet every condition, in the order of writing; hidden and expired ones on wish."""
        chosen = Filter(
            session_id=session_id,
            tags=tags,
            matching=matching,
            source=source,
            since=since,
            until=until,
            kinds=kinds,
            include_hidden=include_hidden,
        )
        with self._core.reading():
            found = self._core.find(namespace)
            if found is None:
                return []
            with found.database.read() as connection:
                if where is not None:
                    chosen = replace(chosen, where=resolved(connection, where))
                rows = words.select_rows(
                    connection, chosen, newest_first=newest_first, limit=limit, offset=offset
                )
            return reading.records(self._core, found, rows)

    def count(self, namespace: str) -> int:
        with self._core.reading():
            found = self._core.find(namespace)
            if found is None:
                return 0
            with found.database.read() as connection:
                return words.count(connection)

    def count_listed(
        self,
        namespace: str,
        *,
        matching: str | None = None,
        where: Condition | None = None,
        include_hidden: bool = False,
    ) -> int:
        """How many memories `list` would give."""
        chosen = Filter(matching=matching, include_hidden=include_hidden)
        with self._core.reading():
            found = self._core.find(namespace)
            if found is None:
                return 0
            with found.database.read() as connection:
                if where is not None:
                    chosen = replace(chosen, where=resolved(connection, where))
                return words.count_rows(connection, chosen)

    def content_digest(self, namespace: str) -> str:
        """The same for two banks whose live memories are the same, apart from ids; what was erased leaves no
        mark on it. Not to be kept: it tells guessed words from others.
        """
        from mnemos.store.content import content_digest

        with self._core.reading():
            return content_digest(self._core, namespace)

    def recent_ids(
        self,
        namespace: str,
        limit: int,
        *,
        where: Condition | None = None,
        ids: Sequence[str] | None = None,
    ) -> builtins.list[str]:
        """Ids of the latest memories, newest first, of those neither hidden nor expired; of those that
        `where` allows, and of `ids`, where they are given.
        """
        with self._core.reading():
            found = self._core.find(namespace)
            if found is None:
                return []
            with found.database.read() as connection:
                allowed = None if where is None else resolved(connection, where)
                return words.recent_ids(connection, limit, allowed, ids)

    def set_flags(
        self, namespace: str, memory_id: str, *, pinned: bool | None = None, hidden: bool | None = None
    ) -> MemoryRecord:
        with self._core.writing():
            found = self._core.get(namespace)
            with found.database.write() as connection:
                full_id = words.full_id(connection, memory_id)
                words.set_flags(connection, full_id, pinned, hidden)
        return reading.by_id(self._core, namespace, [full_id])[0]

    def set_expiry(self, namespace: str, memory_id: str, moment: datetime | None) -> MemoryRecord:
        """When a memory expires, or that it never does. NotFoundError, AmbiguousIdError."""
        moment_us = None if moment is None else words.to_us(moment)
        full_id = restating.set_expiry(self._core, namespace, memory_id, moment_us)
        return reading.by_id(self._core, namespace, [full_id])[0]

    def abandoned(self, older_than_s: float) -> builtins.list[tuple[str, str]]:
        """(namespace, memory id) of exchanges that are still open and were begun longer ago than that.

        Whoever began them is gone, when that is longer than any reply takes: `complete` them with an empty
        reply and status "interrupted", and they count as memories of what the user said.
        """
        with self._core.reading():
            return upkeep.abandoned(self._core, older_than_s)

    # -- search and provenance

    def lexical(
        self, namespace: str, query: str, limit: int, *, where: Condition | None = None
    ) -> builtins.list[tuple[str, float]]:
        """(memory id, BM25), best first, of memories neither hidden nor expired and allowed by `where`."""
        with self._core.reading():
            found = self._core.find(namespace)
            if found is None:
                return []
            with found.database.read() as connection:
                allowed = None if where is None else resolved(connection, where)
                return lexical.search(connection, query, limit, allowed)

    def phrases(self, namespace: str, query: str) -> phrases.Phrases:
        """As `phrases.phrases`; hidden and expired memories are among them."""
        with self._core.reading():
            found = self._core.find(namespace)
            if found is None:
                return phrases.NOTHING
            with found.database.read() as connection:
                return phrases.phrases(connection, query)

    def candidates(
        self,
        namespace: str,
        query: str | None,
        *,
        by_words: int,
        recent: int,
        beside: int,
        where: Condition | None = None,
        more: Sequence[str] = (),
    ) -> Candidates:
        """What a router scores for a query: `by_words` memories by its words (none without a query), the
        `recent` latest ones, the neighbours of the best `beside`, and `more` by their ids.
        """
        with self._core.reading():
            found = self._core.find(namespace)
            if found is None:
                return Candidates({}, {})
            with found.database.read() as connection:
                allowed = None if where is None else resolved(connection, where)
                return candidates(
                    connection,
                    query,
                    by_words=by_words,
                    recent=recent,
                    beside=beside,
                    where=allowed,
                    more=more,
                )

    def places(self, namespace: str, ids: Sequence[str]) -> builtins.list[nearby.Place]:
        """Speaker and visible neighbours of those memories that are there."""
        with self._core.reading():
            found = self._core.find(namespace)
            if found is None:
                return []
            with found.database.read() as connection:
                return nearby.places(connection, ids)

    def uses_of(self, namespace: str, reply_id: str) -> builtins.list[UseRecord]:
        """The memories that a reply was made with, by rank."""
        with self._core.reading():
            found = self._core.get(namespace)
            with found.database.read() as connection:
                return words.uses_of(connection, words.full_id(connection, reply_id))

    def used_in(self, namespace: str, memory_id: str) -> builtins.list[str]:
        """Ids of the replies that were made with a memory, oldest first."""
        with self._core.reading():
            found = self._core.get(namespace)
            with found.database.read() as connection:
                return words.used_in(connection, [words.full_id(connection, memory_id)])
