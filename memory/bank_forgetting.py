"""What the bank does to take memories out: plans, erases, edits, expiry, retention, quotas."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

from mnemos.errors import (
    UsageError,
)
from mnemos.memory.bank_sessions import DEFAULT_NAMESPACE
from mnemos.memory.convert import (
    plan_from_store,
    plan_to_store,
    receipt_from_store,
    to_memory,
)
from mnemos.memory.records import (
    Edited,
    ForgetPlan,
    Memory,
    Receipt,
)
from mnemos.memory.sizes import check_size
from mnemos.store.records import (
    Selector,
)

if TYPE_CHECKING:
    from mnemos.attention.models import LanguageModel
    from mnemos.memory.recall import Recaller
    from mnemos.memory.records import LikeMatch
    from mnemos.store.quotas import Quota
    from mnemos.store.retention import Retention
    from mnemos.store.selectors import Condition
    from mnemos.store.store import Store


class ForgettingBank:
    """A part of `MemoryBank`."""

    store: "Store"
    _recaller: "Recaller | None"

    if TYPE_CHECKING:

        def recaller(self, model: "LanguageModel | None" = None) -> "Recaller": ...

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
