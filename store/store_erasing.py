"""What the store does about forgetting: plans, erases, limits, receipts."""

import builtins
from collections.abc import Callable
from typing import Any

from mnemos.store import erasing, planning, reading, receipts, upkeep
from mnemos.store.core import Core
from mnemos.store.ids import check_namespace
from mnemos.store.quotas import Quota, check_quota, get_quota, set_quota
from mnemos.store.records import Cascade, ErasePlan, MemoryRecord, Selector
from mnemos.store.retention import Retention, check_retention, get_retention, set_retention


class ErasingStore:
    """A part of `Store`, which has the bank open."""

    _core: Core

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

    def quota(self, namespace: str) -> Quota:
        """How much the namespace may hold; no limits where the bank has no such namespace."""
        with self._core.reading():
            found = self._core.find(namespace)
            if found is None:
                return Quota()
            with found.database.read() as connection:
                return get_quota(connection)

    def set_quota(self, namespace: str, limits: Quota) -> None:
        """Sets every limit of the namespace, which is made if need be. UsageError."""
        check_quota(limits)
        check_namespace(namespace)
        with self._core.writing(), self._core.ensure(namespace).database.write() as connection:
            set_quota(connection, limits)

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
        return reading.by_id(self._core, plan.namespace, [receipt["rewritten"][old]])[0], receipt

    def resume(self) -> builtins.list[dict[str, Any]]:
        """Finishes erases that a crash or a reader left half-done; their receipts."""
        return erasing.resume(self._core)

    def receipts(self) -> builtins.list[dict[str, Any]]:
        """Of every erase, oldest first."""
        with self._core.reading(), self._core.catalog.read() as connection:
            return receipts.all_receipts(connection)
