"""`Store`: the bank on disk, as the rooms above see it."""

import builtins
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mnemos.errors import BankError, BankUnreadableError, ErasePendingError
from mnemos.store import (
    catalog,
    compacting,
    erasing,
    expiring,
    lexical,
    planning,
    reading,
    receipts,
    rekeying,
    repairing,
    rewriting,
    upkeep,
    verifying,
    words,
    writing,
)
from mnemos.store.archive_records import Exported
from mnemos.store.core import Core
from mnemos.store.ids import check_namespace, new_id
from mnemos.store.keys import KeyProvider, LockKind, kind_of
from mnemos.store.lock import DEFAULT_WAIT_S
from mnemos.store.migrations import version
from mnemos.store.opening import open_core
from mnemos.store.receipts import os_user
from mnemos.store.records import (
    Cascade,
    CompactReport,
    ErasePlan,
    MemoryDraft,
    MemoryRecord,
    RepairReport,
    Selector,
    SessionRecord,
    Status,
    StoreStats,
    TraceDraft,
    UseRecord,
    VerifyReport,
)
from mnemos.store.recovery import clear_dead_frames, recover
from mnemos.store.retention import Retention, check_retention, get_retention, set_retention
from mnemos.store.selector_sql import resolved
from mnemos.store.selectors import Condition
from mnemos.store.words import Filter

if TYPE_CHECKING:
    from mnemos.store.archive_merge import Merger

__all__ = ["Store"]


class Store:
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
        with self._core.reading(), self._core.catalog.read() as connection:
            epoch = catalog.erase_epoch(connection)
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
        with self._core.reading(), self._core.catalog.read() as connection:
            return catalog.get_setting(connection, key)

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
        records = {record.id: record for record in self._by_id(namespace, known)} if known else {}
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
    ) -> MemoryRecord:
        """Adds the model's words to a memory, and which memories they were made with; durable.

        Raises NotFoundError when the memory, or one of those used, was erased meanwhile.
        """
        full_id = writing.complete(self._core, namespace, memory_id, reply, status, uses)
        return self._by_id(namespace, [full_id])[0]

    def get(self, namespace: str, memory_id: str) -> MemoryRecord:
        """By id or prefix (4 characters at least). NotFoundError, AmbiguousIdError."""
        with self._core.reading():
            return reading.get(self._core, self._core.get(namespace), memory_id)

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

    def recent_ids(self, namespace: str, limit: int) -> builtins.list[str]:
        """Ids of the latest memories, newest first, of those neither hidden nor expired."""
        with self._core.reading():
            found = self._core.find(namespace)
            if found is None:
                return []
            with found.database.read() as connection:
                return words.recent_ids(connection, limit)

    def set_flags(
        self, namespace: str, memory_id: str, *, pinned: bool | None = None, hidden: bool | None = None
    ) -> MemoryRecord:
        with self._core.writing():
            found = self._core.get(namespace)
            with found.database.write() as connection:
                full_id = words.full_id(connection, memory_id)
                words.set_flags(connection, full_id, pinned, hidden)
        return self._by_id(namespace, [full_id])[0]

    def set_expiry(self, namespace: str, memory_id: str, moment: datetime | None) -> MemoryRecord:
        """When a memory expires, or that it never does. NotFoundError, AmbiguousIdError."""
        moment_us = None if moment is None else words.to_us(moment)
        full_id = expiring.set_expiry(self._core, namespace, memory_id, moment_us)
        return self._by_id(namespace, [full_id])[0]

    def _by_id(self, namespace: str, ids: Sequence[str]) -> builtins.list[MemoryRecord]:
        with self._core.reading():
            found = self._core.get(namespace)
            with found.database.read() as connection:
                rows = words.select_rows(connection, Filter(ids=list(dict.fromkeys(ids))))
            known = {record.id: record for record in reading.records(self._core, found, rows)}
            return [known[memory_id] for memory_id in ids]

    def abandoned(self, older_than_s: float) -> builtins.list[tuple[str, str]]:
        """(namespace, memory id) of exchanges that are still open and were begun longer ago than that.

        Whoever began them is gone, when that is longer than any reply takes: `complete` them with an empty
        reply and status "interrupted", and they count as memories of what the user said.
        """
        with self._core.reading():
            return upkeep.abandoned(self._core, older_than_s)

    # -- traces

    def put_traces(self, namespace: str, drafts: Sequence[TraceDraft]) -> None:
        """Stores traces as one durable group; a memory's former trace is superseded. NotFoundError."""
        writing.put_traces(self._core, namespace, drafts)

    def get_kv(self, namespace: str, memory_id: str) -> bytes:
        """NotFoundError when there is none, BankUnreadableError when it is damaged."""
        with self._core.reading():
            return reading.read_frame(self._core, self._core.get(namespace), memory_id, "kv")

    def get_kvs(self, namespace: str, ids: Sequence[str]) -> dict[str, bytes]:
        """Of those that have one: cheaper than one by one."""
        with self._core.reading():
            found = self._core.find(namespace)
            return {} if found is None else reading.read_frames(self._core, found, ids, "kv")

    def get_route(self, namespace: str, memory_id: str) -> bytes:
        with self._core.reading():
            return reading.read_frame(self._core, self._core.get(namespace), memory_id, "route")

    def get_routes(self, namespace: str, ids: Sequence[str]) -> dict[str, bytes]:
        """Of those that have one."""
        with self._core.reading():
            found = self._core.find(namespace)
            return {} if found is None else reading.read_frames(self._core, found, ids, "route")

    def pending_traces(self, namespace: str | None, fingerprint: str) -> builtins.list[tuple[str, str]]:
        """(namespace, memory id) of finished memories without a trace of that model, oldest first."""
        with self._core.reading():
            found = None if namespace is None else self._core.find(namespace)
            if namespace is not None and found is None:
                return []
            with self._core.catalog.read() as connection:
                pairs = catalog.pending_traces(connection, None if found is None else found.id, fingerprint)
            names = {row_id: self._core.by_id(row_id) for row_id in {pair[0] for pair in pairs}}
            return [(known.name, pair[1]) for pair in pairs if (known := names[pair[0]]) is not None]

    def traced_ids(self, namespace: str) -> builtins.list[str]:
        """Ids of the memories that have a trace, hidden ones too."""
        with self._core.reading():
            found = self._core.find(namespace)
            return [] if found is None else reading.traced_ids(self._core, found)

    def put_prefix(self, fingerprint: str, payload: bytes) -> None:
        writing.put_prefix(self._core, fingerprint, payload)

    def get_prefix(self, fingerprint: str) -> bytes | None:
        with self._core.reading():
            return reading.read_prefix(self._core, fingerprint)

    # -- search and provenance

    def lexical(self, namespace: str, query: str, limit: int) -> builtins.list[tuple[str, float]]:
        """(memory id, BM25), best first, of memories neither hidden nor expired."""
        with self._core.reading():
            found = self._core.find(namespace)
            if found is None:
                return []
            with found.database.read() as connection:
                return lexical.search(connection, query, limit)

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

    # -- sessions

    def create_session(self, namespace: str, title: str | None = None) -> SessionRecord:
        with self._core.writing():
            found = self._core.ensure(namespace)
            session_id = new_id()
            with found.database.write() as connection:
                words.add_session(connection, session_id, title)
                return words.sessions(connection, namespace, session_id)[0]

    def sessions(self, namespace: str) -> builtins.list[SessionRecord]:
        """Latest change first."""
        with self._core.reading():
            found = self._core.find(namespace)
            if found is None:
                return []
            with found.database.read() as connection:
                return words.sessions(connection, namespace)

    def get_session(self, namespace: str, session_id: str) -> SessionRecord:
        """By id or prefix. NotFoundError, AmbiguousIdError."""
        with self._core.reading():
            found = self._core.get(namespace)
            with found.database.read() as connection:
                full_id = words.full_session_id(connection, session_id)
                return words.sessions(connection, namespace, full_id)[0]

    def rename_session(self, namespace: str, session_id: str, title: str | None) -> SessionRecord:
        with self._core.writing():
            found = self._core.get(namespace)
            with found.database.write() as connection:
                full_id = words.full_session_id(connection, session_id)
                words.rename_session(connection, full_id, title)
                return words.sessions(connection, namespace, full_id)[0]

    # -- erase

    def plan_erase(self, selector: Selector, cascade: Cascade = "closure") -> ErasePlan:
        """What an erase would do; nothing is touched. Empty when nothing matches. InvalidSelectorError,
        NotFoundError.
        """
        with self._core.reading():
            return planning.plan_erase(self._core, selector, cascade)

    def plan_expired(self, namespace: str, limits: Retention | None = None) -> ErasePlan:
        """The plan of erasing what has expired or is beyond the namespace's limits, or beyond those given.

        NotFoundError for an unknown namespace.
        """
        with self._core.reading():
            return planning.plan_expired(self._core, namespace, limits)

    def sweep_expired(self, namespace: str | None = None) -> builtins.list[dict[str, Any]]:
        """Erases what has expired or is beyond its namespace's limits, in every namespace or in one, and the
        replies that hang on it; the receipts.

        One that a reader holds up gets its receipt later, from `resume`. BankReadOnlyError, BankLockedError.
        """
        with self._core.reading():
            return upkeep.sweep_expired(self._core, namespace)

    def retention(self, namespace: str) -> Retention:
        """How much the namespace keeps. NotFoundError."""
        with self._core.reading(), self._core.get(namespace).database.read() as connection:
            return get_retention(connection)

    def set_retention(self, namespace: str, limits: Retention) -> None:
        """Sets every limit of the namespace, which is made if need be; the next sweep erases what is beyond.

        Raises UsageError for limits that keep nothing.
        """
        check_retention(limits)
        check_namespace(namespace)
        with self._core.writing(), self._core.ensure(namespace).database.write() as connection:
            set_retention(connection, limits)

    def audit(self) -> builtins.list[dict[str, Any]]:
        """The hash-chained log of erases, oldest first."""
        with self._core.reading(), self._core.catalog.read() as connection:
            return receipts.audit_lines(connection)

    def erase(self, plan: ErasePlan, *, on_step: Callable[[str], None] | None = None) -> dict[str, Any]:
        """Carries out a plan; the signed receipt. `on_step` is told each of `erasing.STEPS` when it is done.

        StalePlanError when things have changed since, NotFoundError when the plan is empty,
        ErasePendingError when all is out of reach but a reader keeps the last bytes: `resume` finishes it.
        """
        return erasing.erase(self._core, plan, on_step)

    def edit(
        self, plan: ErasePlan, text: str, *, on_step: Callable[[str], None] | None = None
    ) -> tuple[MemoryRecord, dict[str, Any]]:
        """Carries out a plan of one memory with new words in its place: the memory under its new id, and the
        receipt of the old words. It keeps all else but its reply and its trace. A crash at any point leaves
        the one or the other, whole.

        Raises as `erase` does, and InvalidTextError; UsageError while it waits for a reply.
        """
        receipt = erasing.replace_text(self._core, plan, text, on_step)
        (old,) = receipt["edited"]
        return self._by_id(plan.namespace, [receipt["rewritten"][old]])[0], receipt

    def resume(self) -> builtins.list[dict[str, Any]]:
        """Finishes erases that a crash or a reader left half-done; their receipts."""
        return erasing.resume(self._core)

    def receipts(self) -> builtins.list[dict[str, Any]]:
        """Of every erase, oldest first."""
        with self._core.reading(), self._core.catalog.read() as connection:
            return receipts.all_receipts(connection)

    # -- archives

    def export(
        self,
        out: Any,
        names: Sequence[str],
        chosen: Filter,
        *,
        traces: bool = False,
        is_filtered: bool = False,
        model: tuple[str | None, str | None] = (None, None),
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Exported:
        """Writes an archive of those memories to `out`; `model` is name and fingerprint of the traces' model.

        NotFoundError before anything is written when nothing is chosen. When it raises StalePlanError,
        something was erased meanwhile and `out` is not to be used.
        """
        from mnemos.store import archive_export

        with self._core.reading():
            total = archive_export.find_any(self._core, names, chosen)
            if not self.read_only:
                archive_export.note_export(self._core, names)
            exporter = archive_export.Exporter(
                self._core,
                out,
                chosen,
                traces=traces,
                is_filtered=is_filtered,
                model=model[0],
                fingerprint=model[1],
                on_progress=on_progress,
            )
            return exporter.run(names, total)

    def merger(self, *, restore_erased: bool = False) -> "Merger":
        """Merges the groups of an archive into the bank."""
        from mnemos.store.archive_merge import Merger

        return Merger(self._core, restore_erased=restore_erased)

    # -- care

    def rekey(
        self,
        new_keys: KeyProvider | None = None,
        *,
        keep_old: Path | None = None,
        on_step: Callable[[str], None] | None = None,
    ) -> rekeying.Rekeyed:
        """Puts the bank under a new master key and destroys the old one; no frame is written anew.

        Without `new_keys` the key file gets a new key. `keep_old` names a new file that the old key is kept
        in; copies of the bank made before can be read with it, and with nothing else. Namespace keys stay as
        they are. UsageError, BankKeyError, BankLockedError.
        """
        return rekeying.rekey(self._core, new_keys, keep_old, on_step)

    def public_key(self) -> str:
        """The Ed25519 key that the bank's receipts verify with, in base64."""
        with self._core.reading():
            return erasing.public_key_of(self._core)

    def verify(
        self,
        deep: bool = False,
        progress: Callable[[int, int], None] | None = None,
        *,
        resume: bool = False,
    ) -> VerifyReport:
        """Holds everything in the bank against everything else; `deep` decrypts every frame.

        `resume` goes on where a verify of the same depth was cut off, if one was.
        """
        with self._core.reading():
            return verifying.verify(self._core, deep, progress, resume=resume)

    def repair(self, progress: Callable[[int, int], None] | None = None) -> RepairReport:
        """Rebuilds what can be rebuilt from text, and puts memories whose words are lost in quarantine.

        BankReadOnlyError, BankLockedError.
        """
        return repairing.repair(self._core, progress)

    def stats(self, namespace: str | None = None) -> StoreStats:
        from mnemos.store.statistics import stats

        with self._core.reading():
            return stats(self._core, namespace)

    def compact(
        self,
        *,
        on_progress: Callable[[int, int], None] | None = None,
        min_dead_share: float = compacting.MIN_DEAD_SHARE,
        max_bytes: int | None = None,
    ) -> CompactReport:
        """Moves live frames out of segments that are mostly dead, and removes those. Readers may go on, and
        writers between its groups. `on_progress` is told bytes moved and bytes to move.

        ErasePendingError while an erase waits for a reader, BankFullError, BankLockedError,
        BankReadOnlyError.
        """
        return compacting.compact(
            self._core, on_progress=on_progress, min_dead_share=min_dead_share, max_bytes=max_bytes
        )

    def reclaim(self) -> int:
        """Clears superseded frames; the bytes given back."""
        with self._core.writing():
            return clear_dead_frames(self._core)
