"""`MemoryBank`: remember, look up, recall, forget. The words are safe without a model; a model adds
traces.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import IO, TYPE_CHECKING, Literal, Self

from mnemos.errors import (
    BankLockedError,
    BankUnreadableError,
    ErasePendingError,
    InvalidTextError,
    NotFoundError,
    UsageError,
)
from mnemos.memory.bank_sessions import DEFAULT_NAMESPACE as DEFAULT_NAMESPACE
from mnemos.memory.bank_sessions import SessionBank
from mnemos.memory.convert import (
    audit_from_store,
    plan_from_store,
    plan_to_store,
    receipt_from_store,
    to_memory,
)
from mnemos.memory.records import (
    AuditLine,
    BankStats,
    Edited,
    ForgetPlan,
    Kind,
    Memory,
    RecalledMemory,
    Receipt,
    RouterName,
    TraceParts,
)
from mnemos.store.records import (
    CompactReport,
    MemoryDraft,
    RepairReport,
    Selector,
    UseRecord,
    VerifyReport,
)

if TYPE_CHECKING:
    from mnemos.attention.models import LanguageModel
    from mnemos.memory.archive_records import ExportReport, ImportReport
    from mnemos.memory.archiving import Chosen
    from mnemos.memory.importing import ImportFormat
    from mnemos.memory.listing import Sort
    from mnemos.memory.recall import Recaller
    from mnemos.memory.records import LikeMatch
    from mnemos.store.keys import KeyProvider, LockKind
    from mnemos.store.quotas import Quota
    from mnemos.store.rekeying import Rekeyed
    from mnemos.store.retention import Retention
    from mnemos.store.selectors import Condition
    from mnemos.store.store import Store

_IN_WORKING_MEMORY = "working"  # the signal of a use that was no recall
FROM_TOOL = "tool"  # the signal of what a tool of the same turn returned or found
MAX_TEXT_BYTES = 64 * 1024  # of one memory: some 16,000 tokens of KV
BANK_VARIABLE = "MNEMOS_BANK"


def default_path() -> Path:
    """`MNEMOS_BANK`, or `bank` in the platform's data directory."""
    named = os.environ.get(BANK_VARIABLE)
    if named:
        return Path(named).expanduser()
    from platformdirs import user_data_path

    return user_data_path("mnemos") / "bank"


def check_size(text: str) -> None:
    """Raises `InvalidTextError` when a text is too large to be one memory."""
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_TEXT_BYTES:
        raise InvalidTextError(
            f"the text has {size:,} bytes, one memory takes {MAX_TEXT_BYTES:,}; put it in a file and "
            "`mnemos ingest` it, which cuts it into passages. Nothing was stored"
        )


def made_with(
    recalled: Sequence[RecalledMemory] = (), working: Sequence[Memory] = (), tools: Sequence[Memory] = ()
) -> "list[UseRecord]":
    """The provenance of what is made with these memories in view, each once."""
    uses = [UseRecord(memory.id, 0, 0.0, {_IN_WORKING_MEMORY: 1.0}) for memory in working]
    uses += [UseRecord(memory.id, 0, 0.0, {FROM_TOOL: 1.0}) for memory in tools]
    uses += [UseRecord(r.memory.id, r.rank, r.score, dict(r.signals), r.attention, r.cited) for r in recalled]
    return list({use.memory_id: use for use in uses}.values())


class MemoryBank(SessionBank):
    """A directory of memories, in namespaces. Open it with `MemoryBank.open`; close it, or use it in a
    `with`.

    Safe to use from several threads. Every method that reads or deletes names one namespace; none crosses.
    """

    def __init__(self, store: "Store") -> None:
        self.store = store
        self._recaller: Recaller | None = None
        self._opening = Lock()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str] | None = None,
        *,
        encryption: bool = True,
        keys: "KeyProvider | None" = None,
        read_only: bool = False,
        create: bool = True,
        sweep: bool = True,
        actor: str = "api",
    ) -> Self:
        """Open a bank, making it on first use. What its time is over for is erased, unless `sweep` is off.
        `actor` is who the audit log names, with the system's user.

        Without a path: `MNEMOS_BANK`, or the platform's data directory. Raises a `BankError` that says why
        the bank can't be opened and what to do.
        """
        from mnemos.store.store import Store  # late: SQLAlchemy alone takes 0.4 s

        place = default_path() if path is None else Path(path).expanduser()
        bank = cls(
            Store.open(
                place, keys=keys, encrypted=encryption, read_only=read_only, create=create, actor=actor
            )
        )
        if sweep and not read_only:
            # Left to the next open; a damaged namespace must not keep `verify` and the others from opening.
            with suppress(BankLockedError, ErasePendingError, BankUnreadableError):
                bank.sweep()
        return bank

    def close(self) -> None:
        """Let go of files and of decoded memories in host memory, which are overwritten."""
        if self._recaller is not None:
            self._recaller.close()
            self._recaller = None
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def path(self) -> Path:
        return self.store.path

    @property
    def bank_id(self) -> str:
        return self.store.bank_id

    @property
    def read_only(self) -> bool:
        return self.store.read_only

    @property
    def encrypted(self) -> bool:
        return self.store.encrypted

    @property
    def key_location(self) -> str:
        """Where the master key lies. Back it up: without it the bank can't be read."""
        return self.store.key_location

    @property
    def lock_kind(self) -> "LockKind | None":
        """`file`, `passphrase` or `custom`: what gives the master key. None without encryption."""
        return self.store.lock_kind

    # remembering

    def remember(
        self,
        text: str,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        kind: Kind = "note",
        speaker: str | None = "User",
        title: str | None = None,
        source: str | None = None,
        session_id: str | None = None,
        tags: Sequence[str] = (),
        created_at: datetime | None = None,
        expires_at: datetime | None = None,
        content_key: bytes | None = None,
    ) -> Memory:
        """Write one memory; it is durable when this returns. Its trace is made when a model is next at hand.

        Raises `InvalidTextError` when the text is empty or too large, `BankError` when it can't be written.
        """
        draft = MemoryDraft(
            text=text,
            kind=kind,
            speaker=speaker,
            title=title,
            source=source,
            session_id=session_id,
            tags=tuple(tags),
            created_at=created_at,
            expires_at=expires_at,
            content_key=content_key,
        )
        return self.remember_many([draft], namespace=namespace)[0]

    def remember_many(
        self, drafts: Sequence[MemoryDraft], *, namespace: str = DEFAULT_NAMESPACE
    ) -> list[Memory]:
        """Write several memories as one durable group: all of them or none."""
        for draft in drafts:
            check_size(draft.text)
        return [to_memory(record) for record in self.store.add(namespace, drafts)]

    def begin_exchange(self, text: str, *, namespace: str, session_id: str | None) -> Memory:
        """Write the user's message before anything else happens to it; the reply is still open."""
        draft = MemoryDraft(text=text, kind="exchange", speaker="User", session_id=session_id, status="open")
        return self.remember_many([draft], namespace=namespace)[0]

    def complete_exchange(
        self,
        exchange: Memory,
        reply: str,
        *,
        status: Literal["complete", "interrupted"] = "complete",
        recalled: Sequence[RecalledMemory] = (),
        working: Sequence[Memory] = (),
        tools: Sequence[Memory] = (),
        tags: Sequence[str] | None = None,
        expires_at: datetime | None = None,
    ) -> Memory:
        """Add the reply's words and its provenance to an exchange; durable when this returns.

        `working` are the earlier turns that the reply was made with, `tools` what tools returned: forgetting
        one takes the reply with it.
        Tags and an expiry, where given, take the place of the exchange's own.
        """
        uses = made_with(recalled, working, tools)
        record = self.store.complete(
            exchange.namespace, exchange.id, reply, status, uses, tags=tags, expires_at=expires_at
        )
        return to_memory(record)

    # looking

    def namespaces(self) -> list[str]:
        return self.store.namespaces()

    def get(self, memory_id: str, *, namespace: str = DEFAULT_NAMESPACE) -> Memory:
        """One memory by its id or an unambiguous prefix of four characters or more. Raises
        `NotFoundError`.
        """
        return to_memory(self.store.get(namespace, memory_id))

    def list(
        self,
        namespace: str = DEFAULT_NAMESPACE,
        *,
        session_id: str | None = None,
        matching: str | None = None,
        tags: Sequence[str] | None = None,
        source: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        where: "Condition | str | None" = None,
        include_hidden: bool = False,
        newest_first: bool = True,
        limit: int | None = None,
        offset: int = 0,
        sort: "Sort" = "created",
        model: "LanguageModel | None" = None,
    ) -> list[Memory]:
        """Memories of a namespace; every filter that is given must hold. `where` is as in `plan_forget`.

        Sorted by `size` or `uses` the largest or most used come first, unless `newest_first` is off.
        """
        condition, _ = self._choose(where, namespace, model)
        if sort != "created":
            from mnemos.memory.listing import Listing, listed
            from mnemos.store.words import Filter

            chosen = Filter(
                session_id=session_id,
                matching=matching,
                tags=tags,
                source=source,
                since=since,
                until=until,
                where=condition,
                include_hidden=include_hidden,
            )
            listing = Listing(self, namespace, chosen, sort=sort, reverse=not newest_first)
            return listed(listing, limit, offset)
        records = self.store.list(
            namespace,
            session_id=session_id,
            matching=matching,
            tags=tags,
            source=source,
            since=since,
            until=until,
            where=condition,
            include_hidden=include_hidden,
            newest_first=newest_first,
            limit=limit,
            offset=offset,
        )
        return [to_memory(record) for record in records]

    def count(
        self,
        namespace: str = DEFAULT_NAMESPACE,
        *,
        matching: str | None = None,
        where: "Condition | str | None" = None,
        include_hidden: bool = False,
        model: "LanguageModel | None" = None,
    ) -> int:
        """How many memories `list` would give with the same filters."""
        condition, _ = self._choose(where, namespace, model)
        return self.store.count_listed(
            namespace, matching=matching, where=condition, include_hidden=include_hidden
        )

    def search(
        self,
        query: str,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        limit: int = 10,
        router: RouterName = "full",
        where: "Condition | str | None" = None,
        model: "LanguageModel | None" = None,
    ) -> Sequence[RecalledMemory]:
        """The best memories for a query, of those that `where` allows (as in `plan_forget`), best first.

        `lexical` needs no model. `full` and `latent` use `model`, or the model this bank was last used with;
        the default model is loaded when there is neither.
        """
        if limit < 1:
            raise UsageError(f"limit must be at least 1, not {limit}")
        allowed, _ = self._choose(where, namespace, model)
        if router == "lexical":
            return self._lexical(query, namespace, limit, allowed)
        return self.recaller(model).search(
            query, namespace=namespace, limit=limit, router=router, where=allowed
        )

    def trace_parts(
        self, memory_id: str, *, namespace: str = DEFAULT_NAMESPACE, model: "LanguageModel | None" = None
    ) -> TraceParts:
        """How a memory is cut into spans of tokens by a model, and what its trace takes."""
        from mnemos.memory.trace_parts import trace_parts

        return trace_parts(self.store, self.recaller(model), self.get(memory_id, namespace=namespace))

    def why(self, exchange_id: str, *, namespace: str = DEFAULT_NAMESPACE) -> "Sequence[RecalledMemory]":
        """Which memories an exchange's reply was made with, and the scores that led to each."""
        found: list[RecalledMemory] = []
        for use in self.store.uses_of(namespace, self.get(exchange_id, namespace=namespace).id):
            if _IN_WORKING_MEMORY in use.signals:
                continue
            with suppress(NotFoundError):  # forgotten since the uses were read
                found.append(
                    RecalledMemory(
                        memory=self.get(use.memory_id, namespace=namespace),
                        rank=use.rank,
                        score=use.score,
                        signals=use.signals,
                        attention=use.attention,
                        cited=use.cited,
                    )
                )
        return found

    def used_in(self, memory_id: str, *, namespace: str = DEFAULT_NAMESPACE) -> "Sequence[Memory]":
        """The exchanges whose replies were made with a memory, oldest first."""
        found: list[Memory] = []
        for exchange_id in self.store.used_in(namespace, self.get(memory_id, namespace=namespace).id):
            with suppress(NotFoundError):  # forgotten since the uses were read
                found.append(self.get(exchange_id, namespace=namespace))
        return found

    def _lexical(
        self, query: str, namespace: str, limit: int, where: "Condition | None"
    ) -> "Sequence[RecalledMemory]":
        found: list[RecalledMemory] = []
        for memory_id, score in self.store.lexical(namespace, query, limit, where=where):
            with suppress(NotFoundError):  # forgotten since the index was read
                memory = self.get(memory_id, namespace=namespace)
                signals = {"lexical": score}
                found.append(RecalledMemory(memory=memory, rank=len(found) + 1, score=score, signals=signals))
        return found

    # flags

    def pin(self, memory_id: str, *, namespace: str = DEFAULT_NAMESPACE) -> Memory:
        return self._flag(memory_id, namespace, pinned=True)

    def unpin(self, memory_id: str, *, namespace: str = DEFAULT_NAMESPACE) -> Memory:
        return self._flag(memory_id, namespace, pinned=False)

    def hide(self, memory_id: str, *, namespace: str = DEFAULT_NAMESPACE) -> Memory:
        """Keep a memory from being recalled or found, reversibly. To make it gone, `forget` it."""
        return self._flag(memory_id, namespace, hidden=True)

    def unhide(self, memory_id: str, *, namespace: str = DEFAULT_NAMESPACE) -> Memory:
        return self._flag(memory_id, namespace, hidden=False)

    def _flag(
        self, memory_id: str, namespace: str, *, pinned: bool | None = None, hidden: bool | None = None
    ) -> Memory:
        found = self.store.get(namespace, memory_id)
        self.store.set_flags(namespace, found.id, pinned=pinned, hidden=hidden)
        return to_memory(self.store.get(namespace, found.id))

    # forgetting

    def plan_forget(
        self,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        ids: Sequence[str] | None = None,
        matching: str | None = None,
        session_id: str | None = None,
        source: str | None = None,
        tags: Sequence[str] | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        where: "Condition | str | None" = None,
        everything: bool = False,
        cascade: Literal["closure", "none"] = "closure",
        model: "LanguageModel | None" = None,
    ) -> ForgetPlan:
        """What forgetting would take away. Nothing is touched.

        At least one selector has to be given; all that are given must hold. `where` joins conditions of
        `mnemos.store.selectors` with `&`, `|` and `~`, or is the text that `mnemos.memory.where` reads;
        `like` uses `model` as `search` does, and the plan says what it found. Raises `InvalidSelectorError`.
        """
        condition, likes = self._choose(where, namespace, model)
        selector = Selector(
            namespace=namespace,
            ids=ids,
            matching=matching,
            session_id=session_id,
            source=source,
            tags=tags,
            since=since,
            until=until,
            where=condition,
            everything=everything,
        )
        plan = plan_from_store(self.store.plan_erase(selector, cascade))
        return plan.model_copy(update={"likes": likes})

    def _choose(
        self, where: "Condition | str | None", namespace: str, model: "LanguageModel | None"
    ) -> "tuple[Condition | None, tuple[LikeMatch, ...]]":
        if where is None:
            return None, ()
        from mnemos.memory.choosing import choose

        return choose(where, namespace, lambda: self.recaller(model))

    def forget(self, plan: ForgetPlan, *, on_step: Callable[[str], None] | None = None) -> Receipt:
        """Erase what the plan lists: gone from every file of the bank, irrecoverably.

        Raises `StalePlanError` when the bank changed since the plan was made, `ErasePendingError` when the
        words are out of reach but a reader still keeps the last bytes from being cleared.
        """
        ids = [memory.id for memory in (*plan.selected, *plan.dependants)]
        try:
            document = self.store.erase(plan_to_store(plan), on_step=on_step)
        finally:  # a pending erase is out of reach already, and so must its KV be
            if self._recaller is not None:
                self._recaller.drop(plan.namespace, ids)
        return receipt_from_store(document, plan.namespace)

    def edit(
        self,
        memory_id: str,
        text: str,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        cascade: Literal["closure", "none"] = "closure",
        plan: ForgetPlan | None = None,
        on_step: Callable[[str], None] | None = None,
    ) -> Edited:
        """Put other words in the place of a memory's, which are erased as `forget` does: both or neither.

        The memory keeps all else but its id, its trace and its reply. `plan` is the plan of forgetting it, if
        it was shown to somebody; a stale one is refused. Raises as `forget` and `remember` do, and
        `UsageError` while the memory waits for its reply.
        """
        check_size(text)
        if plan is None:
            plan = self.plan_forget(namespace=namespace, ids=[memory_id], cascade=cascade)
        ids = [memory.id for memory in (*plan.selected, *plan.dependants)]
        try:
            record, document = self.store.edit(plan_to_store(plan), text, on_step=on_step)
        finally:
            if self._recaller is not None:
                self._recaller.drop(plan.namespace, ids)
        return Edited(memory=to_memory(record), receipt=receipt_from_store(document, plan.namespace))

    def tag(self, memory_id: str, tags: Sequence[str], *, namespace: str = DEFAULT_NAMESPACE) -> Memory:
        """Give a memory these tags in the place of its own; durable when this returns."""
        return to_memory(self.store.set_tags(namespace, memory_id, tags))

    def expire(
        self, memory_id: str, moment: datetime | None, *, namespace: str = DEFAULT_NAMESPACE
    ) -> Memory:
        """Set when a memory expires: nothing recalls it then, and the next sweep erases it. None: never.

        Raises `UsageError` for a moment that is over, which is what `forget` is for.
        """
        if moment is not None and moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        if moment is not None and moment <= datetime.now(UTC):
            raise UsageError("that moment is over; `mnemos memory forget` erases a memory now")
        return to_memory(self.store.set_expiry(namespace, memory_id, moment))

    def retention(self, namespace: str = DEFAULT_NAMESPACE) -> "Retention":
        """How much the namespace keeps."""
        return self.store.retention(namespace)

    def set_retention(
        self,
        namespace: str = DEFAULT_NAMESPACE,
        *,
        max_age: timedelta | None = None,
        max_bytes: int | None = None,
        max_memories: int | None = None,
    ) -> "Retention":
        """Set how much a namespace keeps; a limit that is not given is taken away.

        The next sweep erases what is beyond: memories created longer ago than `max_age`, and as many of those
        written first as it takes to come down to `max_bytes` of text and traces and to `max_memories`. Pinned
        memories count and stay. `plan_sweep` shows what would go.
        """
        from mnemos.store.retention import Retention

        limits = Retention(max_age, max_bytes, max_memories)
        self.store.set_retention(namespace, limits)
        return limits

    def quota(self, namespace: str = DEFAULT_NAMESPACE) -> "Quota":
        """How much the namespace may hold."""
        return self.store.quota(namespace)

    def set_quota(
        self,
        namespace: str = DEFAULT_NAMESPACE,
        *,
        memories: int | None = None,
        text_bytes: int | None = None,
        turns_per_day: int | None = None,
    ) -> "Quota":
        """Set how much a namespace may hold; a limit that is not given is taken away.

        A write that goes beyond raises `QuotaExceededError` and keeps nothing; what is there stays. A turn
        counts for 24 hours, and its reply is kept even where it takes the namespace over its bytes.
        """
        from mnemos.store.quotas import Quota

        limits = Quota(memories, text_bytes, turns_per_day)
        self.store.set_quota(namespace, limits)
        return limits

    def plan_sweep(
        self, namespace: str = DEFAULT_NAMESPACE, *, limits: "Retention | None" = None
    ) -> ForgetPlan:
        """What a sweep of the namespace would erase now, or would under other limits."""
        return plan_from_store(self.store.plan_expired(namespace, limits))

    def sweep(self, namespace: str | None = None) -> int:
        """Erase what has expired or is beyond its namespace's limits, in every namespace or in one; how many
        erases that took, each with a receipt.

        It also runs whenever a bank is opened for writing.
        """
        receipts = self.store.sweep_expired(namespace)
        if receipts and self._recaller is not None:
            self._recaller.refresh()
        return len(receipts)

    # archives

    def export(
        self,
        target: "str | os.PathLike[str] | IO[bytes]",
        *,
        namespaces: Sequence[str] | None = None,
        chosen: "Chosen | None" = None,
        traces: bool = False,
        passphrase: str | None = None,
        overwrite: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> "ExportReport":
        """Write memories to an archive: to a file, whole or not at all, or into an open binary stream.

        Of all namespaces unless some are named. Without a passphrase the words in it are readable; either
        way it is outside the bank's reach when something is forgotten. Raises `NotFoundError` when nothing is
        chosen, `StalePlanError` when something was erased while it ran: then what a stream got is worthless.
        """
        from mnemos.memory.archiving import Chosen, export

        return export(
            self.store,
            target,
            namespaces,
            chosen or Chosen(),
            traces=traces,
            passphrase=passphrase,
            overwrite=overwrite,
            on_progress=on_progress,
        )

    def import_(
        self,
        source: "str | os.PathLike[str] | IO[bytes]",
        *,
        format: "ImportFormat" = "auto",
        into: str | None = None,
        default_namespace: str = DEFAULT_NAMESPACE,
        passphrase: str | Callable[[], str] | None = None,
        restore_erased: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> "ImportReport":
        """Merge an archive, or the conversations that ChatGPT, Claude or a chat log exported.

        Repeating it adds nothing. An archive's namespaces keep their names unless `into` is given;
        conversations go to `into`, or to `default_namespace`. What was forgotten here stays so unless
        `restore_erased`. Raises `ArchiveError`, which says how much is in by then.
        """
        from mnemos.memory.importing import import_any

        return import_any(
            self.store,
            source,
            format=format,
            into=into,
            default_namespace=default_namespace,
            passphrase=passphrase,
            restore_erased=restore_erased,
            on_progress=on_progress,
        )

    # the model's side

    def recaller(self, model: "LanguageModel | None" = None) -> "Recaller":
        """The bank as one model reads it. Loads torch, and the default model when none was ever given.

        Raises `ModelMismatchError` when the bank's traces were made by another model.
        """
        from mnemos.memory.pooled_recall import recaller_for

        with self._opening:
            if self._recaller is None or (model is not None and self._recaller.model is not model):
                if model is None:
                    from mnemos.attention.models import load_shared

                    model = load_shared()
                if self._recaller is not None:
                    self._recaller.close()
                self._recaller = recaller_for(self.store, model)
            return self._recaller

    def encode_pending(
        self,
        model: "LanguageModel | None" = None,
        *,
        namespace: str | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> int:
        """Make the traces that are still missing; how many were made. `on_progress(done, total)` counts
        memories.
        """
        return self.recaller(model).encode_pending(namespace, on_progress=on_progress)

    def reencode(
        self, model: "LanguageModel", *, on_progress: Callable[[int, int], None] | None = None
    ) -> int:
        """Make every trace again with `model`, from the text; how many were made.

        The bank belongs to that model afterwards. Stopped half-way, it still belongs to the earlier one; run
        it again.
        """
        from mnemos.memory.pooled_encoder import encoder_for

        if self._recaller is not None:
            self._recaller.close()
            self._recaller = None
        encoder = encoder_for(self.store, model, any_model=True)
        made = encoder.encode_pending(on_progress=on_progress)
        encoder.adopt()
        return made

    # the whole

    def stats(self, namespace: str | None = None) -> BankStats:
        found = self.store.stats(namespace)
        pager = None if self._recaller is None else self._recaller.pager
        return BankStats(
            memories=found.memories,
            hidden=found.hidden,
            pending=found.pending_traces,
            tokens=found.tokens,
            text_bytes=found.text_bytes,
            trace_bytes=found.trace_bytes,
            disk_bytes=found.disk_bytes,
            namespaces=found.namespaces,
            cache_bytes=pager.bytes if pager else 0,
            cache_hits=pager.hits if pager else 0,
            cache_misses=pager.misses if pager else 0,
        )

    def verify(
        self,
        *,
        deep: bool = False,
        resume: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> VerifyReport:
        """Check catalog, frames, keys and indexes against each other; `deep` decrypts every frame as well.

        `resume` goes on where one of the same depth was cut off, unless something was erased since.
        """
        return self.store.verify(deep=deep, progress=progress, resume=resume)

    def repair(self, *, progress: Callable[[int, int], None] | None = None) -> RepairReport:
        """Rebuild what can be rebuilt from text, and put memories whose words are lost in quarantine.

        A trace that can't be read is dropped and made again by the model. The report says what was done.
        """
        report = self.store.repair(progress)
        if self._recaller is not None:
            self._recaller.refresh()
        return report

    def rekey(
        self, new_keys: "KeyProvider | None" = None, *, keep_old: str | os.PathLike[str] | None = None
    ) -> "Rekeyed":
        """Put the bank under a new master key and destroy the old one; no frame is written anew.

        Without `new_keys` the key file gets a new key, and a bank of another kind of key raises `UsageError`.
        Copies of the bank made before can't be opened any more, unless `keep_old` names a new file to keep
        the old key in. Another bank whose key is in the same file loses it, too.
        """
        return self.store.rekey(new_keys, keep_old=None if keep_old is None else Path(keep_old))

    def receipts(self) -> Sequence[Receipt]:
        """Of every erase, oldest first. Their namespaces go by id: a name may be gone."""
        return [receipt_from_store(body, body["namespace"]) for body in self.store.receipts()]

    @property
    def public_key(self) -> str:
        """The key that the bank's receipts verify with: Ed25519, in base64."""
        return self.store.public_key()

    def audit(self) -> Sequence[AuditLine]:
        """Who erased, rekeyed or repaired, and when; oldest first. Ids and counts, never words."""
        return [audit_from_store(line) for line in self.store.audit()]

    def compact(
        self,
        *,
        min_dead_share: float = 0.25,
        max_bytes: int | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> CompactReport:
        """Give space back: move what lives out of segments of which `min_dead_share` or more is dead, and
        remove those. It stops after moving about `max_bytes`, and can be interrupted at any time.

        Other processes may read and write meanwhile. `on_progress(done, total)` counts bytes.
        """
        return self.store.compact(on_progress=on_progress, min_dead_share=min_dead_share, max_bytes=max_bytes)
