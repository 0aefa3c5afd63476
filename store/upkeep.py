"""What a bank wants done now and then: exchanges that nobody finished, memories whose time is over."""

from contextlib import suppress
from typing import Any

from mnemos.errors import ErasePendingError
from mnemos.store import catalog, erasing, lookups, planning
from mnemos.store.core import Core, Namespace
from mnemos.store.retention import get_retention, is_any_past


def abandoned(core: Core, older_than_s: float) -> list[tuple[str, str]]:
    """(namespace, memory id) of exchanges that are still open and were begun longer ago than that."""
    before_us = catalog.now_us() - round(older_than_s * 1e6)
    found: list[tuple[str, str]] = []
    for namespace_id, ids in lookups.open_memories(core.catalog).items():
        namespace = core.by_id(namespace_id)
        if namespace is None:
            continue
        rows = [row for row in (lookups.row(namespace.database, each) for each in ids) if row is not None]
        rows = [row for row in rows if row.status == "open" and row.created_us < before_us]
        found += [(namespace.name, row.id) for row in sorted(rows, key=lambda row: row.ordinal)]
    return found


def sweep_expired(core: Core, only: str | None = None) -> list[dict[str, Any]]:
    """Erases what has expired or is beyond its namespace's limits, in all namespaces or in one; the receipts.

    One that a reader holds up has its own later, from `resume`.
    """
    made: list[dict[str, Any]] = []
    for name in core.namespace_names() if only is None else [only]:
        namespace = core.find(name)
        if namespace is None or not _may_be_past(core, namespace):
            continue
        with core.writing():  # held from the plan to the receipt, so that no plan is stale
            if core.find(name) is None:
                continue
            plan = planning.plan_expired(core, name)
            if plan.selected:
                with suppress(ErasePendingError):
                    made.append(erasing.erase(core, plan, None))
    return made


def _may_be_past(core: Core, namespace: Namespace) -> bool:
    with namespace.database.read() as connection:
        limits = get_retention(connection)
        trace_bytes = 0
        if limits.max_bytes is not None:
            with core.catalog.read() as rows:
                trace_bytes = catalog.sums(rows, namespace.id)[2]
        return is_any_past(connection, limits, trace_bytes, catalog.now_us())
