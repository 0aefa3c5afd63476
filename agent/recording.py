"""What a turn writes, by the rules of its agent: everything, what policies leave of it, or nothing."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal

from mnemos.agent.events import StoredMemory
from mnemos.agent.policies import Decision, Draft, WritePolicy, decide
from mnemos.memory.bank import MemoryBank
from mnemos.memory.records import Memory, RecalledMemory
from mnemos.store.ids import new_id
from mnemos.store.records import MemoryDraft


class TurnRecord:
    """The writes of one turn. `session` gives the id of the session that they belong to, and is asked only
    when something is written.

    A turn that is not kept (`is_kept` off, or its message dropped by a policy) goes by an exchange that is in
    no bank.
    """

    def __init__(
        self,
        bank: MemoryBank,
        *,
        namespace: str,
        session: Callable[[], str],
        known_session: str | None = None,
        policies: Sequence[WritePolicy] = (),
        is_kept: bool = True,
    ) -> None:
        self._bank = bank
        self.namespace = namespace
        self._session = session
        self._policies = tuple(policies)
        self.is_kept = is_kept
        self.session_id = known_session
        self.is_changed = False  # whether something stays otherwise than it was said
        self.store_ms = 0.0
        self._stored: dict[str, StoredMemory] = {}

    @property
    def stored(self) -> tuple[StoredMemory, ...]:
        """What the turn has written so far."""
        return tuple(self._stored.values())

    def begin(self, text: str) -> Memory:
        """The exchange of a message, durable where the turn is kept. PolicyError, QuotaExceededError."""
        decided = self._decide(Draft(text, namespace=self.namespace, session_id=self.session_id))
        draft = decided.draft
        if draft is None:
            self.is_kept = False
            return self._unkept(text)
        self.session_id = self.session_id or self._session()
        made = MemoryDraft(
            text=draft.text,
            kind="exchange",
            speaker="User",
            session_id=self.session_id,
            status="open",
            tags=draft.tags,
            expires_at=draft.expires_at,
            title=draft.title,
            source=draft.source,
        )
        with self._timed():
            (exchange,) = self._bank.remember_many([made], namespace=self.namespace)
        self._note(exchange, decided)
        return exchange

    def complete(
        self,
        exchange: Memory,
        reply: str,
        *,
        status: Literal["complete", "interrupted"],
        recalled: Sequence[RecalledMemory] = (),
        working: Sequence[Memory] = (),
        tools: Sequence[Memory] = (),
    ) -> Memory:
        """The exchange with its reply and provenance, durable where the turn is kept."""
        if not self.is_kept:
            return exchange.model_copy(update={"reply": reply or None, "status": status})
        decided = Decision(None)
        if reply:
            decided = self._decide(
                Draft(
                    reply,
                    part="reply",
                    tags=exchange.tags,
                    expires_at=exchange.expires_at,
                    namespace=self.namespace,
                    session_id=self.session_id,
                )
            )
        draft = decided.draft
        with self._timed():
            done = self._bank.complete_exchange(
                exchange,
                "" if draft is None else draft.text,
                status=status,
                recalled=recalled,
                working=working,
                tools=tools,
                tags=None if draft is None else draft.tags,
                expires_at=None if draft is None else draft.expires_at,
            )
        self._note(done, decided)
        return done

    def remember(self, draft: MemoryDraft) -> Memory | None:
        """Words that came up in the turn, such as a tool's result, as a memory of their own; None where the
        turn is not kept or a policy drops them.
        """
        decided = self._decide(
            Draft(
                draft.text,
                kind=draft.kind,
                tags=tuple(draft.tags),
                expires_at=draft.expires_at,
                title=draft.title,
                source=draft.source,
                namespace=self.namespace,
                session_id=draft.session_id,
            )
        )
        left = decided.draft
        if left is None:
            return None
        made = replace(
            draft,
            text=left.text,
            tags=left.tags,
            expires_at=left.expires_at,
            title=left.title,
            source=left.source,
        )
        with self._timed():
            (memory,) = self._bank.remember_many([made], namespace=self.namespace)
        self._note(memory, decided)
        return memory

    def _decide(self, draft: Draft) -> Decision:
        decided = decide(self._policies, draft) if self.is_kept else Decision(None)
        self.is_changed |= decided.draft is None or decided.draft.text != draft.text
        return decided

    def _note(self, memory: Memory, decided: Decision) -> None:
        before = self._stored.get(memory.id)
        changed_by = dict.fromkeys((*(before.changed_by if before else ()), *decided.changed_by))
        self._stored[memory.id] = StoredMemory(
            memory_id=memory.id,
            kind=memory.kind,
            tags=memory.tags,
            expires_at=memory.expires_at,
            changed_by=tuple(changed_by),
        )

    def _unkept(self, text: str) -> Memory:
        now = datetime.now(UTC)
        return Memory(
            id=new_id(), namespace=self.namespace, kind="exchange", text=text, created_at=now, status="open"
        )

    @contextmanager
    def _timed(self) -> Generator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.store_ms += (time.perf_counter() - started) * 1e3
