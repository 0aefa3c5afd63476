"""`MemoryBank`: remember, look up, recall, forget. The words are safe without a model; a model adds
traces.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from mnemos.errors import (
    BankLockedError,
    BankUnreadableError,
    ErasePendingError,
    NotFoundError,
    UsageError,
)
from mnemos.memory.bank_archives import ArchiveBank
from mnemos.memory.bank_care import CareBank
from mnemos.memory.bank_fading import FadingBank
from mnemos.memory.bank_forgetting import ForgettingBank
from mnemos.memory.bank_sessions import DEFAULT_NAMESPACE as DEFAULT_NAMESPACE
from mnemos.memory.bank_sessions import SessionBank
from mnemos.memory.convert import (
    to_memory,
)
from mnemos.memory.records import (
    Kind,
    Memory,
    RecalledMemory,
    RouterName,
    TraceParts,
)
from mnemos.memory.sizes import MAX_TEXT_BYTES as MAX_TEXT_BYTES
from mnemos.memory.sizes import check_size as check_size
from mnemos.store.records import (
    MemoryDraft,
    UseRecord,
)

if TYPE_CHECKING:
    from mnemos.attention.models import LanguageModel
    from mnemos.memory.listing import Sort
    from mnemos.memory.recall import Recaller
    from mnemos.store.keys import KeyProvider, LockKind
    from mnemos.store.selectors import Condition
    from mnemos.store.store import Store

_IN_WORKING_MEMORY = "working"  # the signal of a use that was no recall
FROM_TOOL = "tool"  # the signal of what a tool of the same turn returned or found
BANK_VARIABLE = "MNEMOS_BANK"


def default_path() -> Path:
    """`MNEMOS_BANK`, or `bank` in the platform's data directory."""
    named = os.environ.get(BANK_VARIABLE)
    if named:
        return Path(named).expanduser()
    from platformdirs import user_data_path

    return user_data_path("mnemos") / "bank"


def made_with(
    recalled: Sequence[RecalledMemory] = (), working: Sequence[Memory] = (), tools: Sequence[Memory] = ()
) -> "list[UseRecord]":
    """The provenance of what is made with these memories in view, each once."""
    uses = [UseRecord(memory.id, 0, 0.0, {_IN_WORKING_MEMORY: 1.0}) for memory in working]
    uses += [UseRecord(memory.id, 0, 0.0, {FROM_TOOL: 1.0}) for memory in tools]
    uses += [UseRecord(r.memory.id, r.rank, r.score, dict(r.signals), r.attention, r.cited) for r in recalled]
    return list({use.memory_id: use for use in uses}.values())


class MemoryBank(SessionBank, ForgettingBank, FadingBank, ArchiveBank, CareBank):
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
        now: datetime | None = None,
    ) -> Sequence[RecalledMemory]:
        """The best memories for a query, of those that `where` allows (as in `plan_forget`), best first. Days
        that the query names ("last week") are counted from `now`, the present moment without it.

        `lexical` needs no model. `full` and `latent` use `model`, or the model this bank was last used with;
        the default model is loaded when there is neither. A blank query finds nothing.
        """
        if limit < 1:
            raise UsageError(f"limit must be at least 1, not {limit}")
        if not query.strip():
            return []
        if now is not None:  # days around it have to be in the calendar, in every time zone
            now = now.replace(year=min(max(now.year, 2), 9998))
        allowed, _ = self._choose(where, namespace, model)
        if router == "lexical":
            return self._lexical(query, namespace, limit, allowed)
        return self.recaller(model).search(
            query, namespace=namespace, limit=limit, router=router, where=allowed, now=now
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
        made += encoder.encode_lacking(on_progress)
        encoder.adopt()
        return made
