"""Erasing memories so that no file holds them, in steps that a crash at any point can't stop.

The intent is written first (ids only). Every later step can be run again, so the next open runs them all.
"""

import json
import shutil
from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import delete, insert

from mnemos.errors import BankError, ErasePendingError, NotFoundError, StalePlanError, UsageError
from mnemos.store import catalog, catalog_schema, editing, erase_memories, erase_namespace, receipts
from mnemos.store.core import Core
from mnemos.store.intents import Intent, confirm, intend, pending
from mnemos.store.planning import WHOLE
from mnemos.store.receipts import note, sign
from mnemos.store.records import ErasePlan
from mnemos.store.recovery import settle
from mnemos.store.selfcheck import check_erased, ranges_of

STEPS = (
    "intent",
    "rewrite",
    "tombstone",
    "index",
    "keys",
    "frames",
    "rows",
    "checkpoint",
    "check",
    "receipt",
)
_ROOM_BYTES = 64 << 20  # with less than this left, the logs are cut first: erasing needs some room itself
OnStep = Callable[[str], None]


def erase(core: Core, plan: ErasePlan, on_step: OnStep | None) -> dict[str, Any]:
    """Carries the plan out; the signed receipt. StalePlanError, NotFoundError, ErasePendingError."""
    with core.writing():
        namespace = core.find(plan.namespace)
        if namespace is None:
            raise StalePlanError("The plan's namespace is gone; plan again.")
        settle(core, namespace)
        rows, dependants = confirm(core, namespace, plan)
        if not plan.token.startswith(WHOLE) and not rows:
            raise NotFoundError("The plan selects no memory, so nothing was erased.")
        intent = intend(core, namespace, plan, rows, dependants)
        _tell(on_step, "intent")
        return _run(core, intent, on_step)


def replace_text(core: Core, plan: ErasePlan, new_text: str, on_step: OnStep | None) -> dict[str, Any]:
    """Erases the one memory that the plan selects, with new words in its place; the signed receipt.

    Raises as `erase` does; UsageError for another plan or an open exchange; InvalidTextError.
    """
    if len(plan.selected) != 1 or plan.token.startswith(WHOLE):
        raise UsageError("An edit takes the place of one memory; plan the erase of that one by its id.")
    with core.writing():
        namespace = core.find(plan.namespace)
        if namespace is None:
            raise StalePlanError("The plan's namespace is gone; plan again.")
        settle(core, namespace)
        rows, dependants = confirm(core, namespace, plan)
        with editing.written(core, namespace, rows[0], new_text) as edit:
            intent = intend(core, namespace, plan, rows, dependants, edit)
        _tell(on_step, "intent")
        return _run(core, intent, on_step)


def resume(core: Core, on_step: OnStep | None = None) -> list[dict[str, Any]]:
    """Finishes every erase that a crash or a reader left half-done; their receipts.

    Raises ErasePendingError when a reader is still in the way of one.
    """
    if not pending(core):
        return []
    with core.writing():
        return [_run(core, intent, on_step) for intent in pending(core)]


def _run(core: Core, intent: Intent, on_step: OnStep | None) -> dict[str, Any]:
    """Every step after the intent, in order; each does nothing where it was done before."""
    steps: Iterable[tuple[str, Callable[[Core, Intent], None]]]
    if intent.is_whole:
        steps = (
            ("tombstone", erase_namespace.bury),
            ("keys", erase_namespace.destroy_keys),
            ("index", erase_namespace.remove_database),
            ("frames", erase_memories.zero_frames),
            ("rows", erase_namespace.remove_rows),
            ("checkpoint", _checkpoint),
        )
    else:
        steps = (
            ("rewrite", erase_memories.rewrite),
            ("tombstone", erase_memories.bury),
            ("index", erase_memories.clear_pages),
            ("keys", erase_memories.destroy_keys),
            ("frames", erase_memories.zero_frames),
            ("rows", erase_memories.remove_rows),
            ("checkpoint", _checkpoint),
        )
    if shutil.disk_usage(core.path).free < _ROOM_BYTES:
        _truncate_logs(core, intent)
    for name, step in steps:
        step(core, intent)
        _tell(on_step, name)
    checks, cleared = check_erased(
        core,
        intent.namespace_id,
        intent.doomed,
        ranges_of(intent.body),
        is_whole=intent.is_whole,
        blocks=intent.body.get("blocks"),
    )
    if not all(checks.values()):
        failed = ", ".join(name for name, held in checks.items() if not held)
        raise BankError(
            f"Erase {intent.id} did not pass its own check ({failed}), so it has no receipt. Run `mnemos "
            "bank verify`."
        )
    _tell(on_step, "check")
    receipt = _sign_off(core, intent, checks, cleared)
    _tell(on_step, "receipt")
    return receipt


def _tell(on_step: OnStep | None, name: str) -> None:
    if on_step is not None:
        on_step(name)


def _checkpoint(core: Core, intent: Intent) -> None:
    if not _truncate_logs(core, intent):
        raise ErasePendingError(
            f"Erase {intent.id}: the memories are out of reach, but another process is reading and keeps "
            "the last bytes from being cleared. There is no receipt yet; it comes when the bank is next "
            "opened for writing."
        )


def _truncate_logs(core: Core, intent: Intent) -> bool:
    """Both write-ahead logs, down to nothing. False when a reader is in the way."""
    namespace = None if intent.is_whole else core.by_id(intent.namespace_id)
    truncated = core.catalog.truncate_wal()
    return truncated if namespace is None else namespace.database.truncate_wal() and truncated


def _sign_off(core: Core, intent: Intent, checks: dict[str, bool], cleared: str) -> dict[str, Any]:
    with core.catalog.read() as connection:
        seq, head = receipts.audit_head(connection)
    key = _signing_key(core)
    body = intent.body
    receipt = sign(
        {
            "version": receipts.RECEIPT_VERSION,
            "id": intent.id,
            "bank": core.bank_id,
            "namespace": intent.namespace_id,
            "started_us": intent.created_us,
            "finished_us": catalog.now_us(),
            "whole_namespace": intent.is_whole,
            "cascade": body["cascade"],
            "erased": intent.selected,
            "rewritten": intent.rewritten,
            **({"edited": intent.edited} if intent.edited else {}),
            "memories": len(intent.selected),
            "frames": body["frames"],
            "bytes": body["bytes"],
            "ciphertext_sha256": body["digest"],
            "cleared_sha256": cleared,
            "erase_epoch": body["epoch"],
            "page_copies": body.get("page_copies", "cleared"),
            "steps": [{"step": name, "outcome": "done"} for name in STEPS[:-1]],
            "checks": checks,
            "audit": {"seq": seq, "digest": head.hex()},
        },
        key,
    )
    with core.catalog.write() as connection:
        connection.execute(
            insert(catalog_schema.receipts).values(
                id=intent.id,
                created_us=receipt["finished_us"],
                body=json.dumps(receipt, separators=(",", ":")),
            )
        )
        connection.execute(delete(catalog_schema.intents).where(catalog_schema.intents.c.id == intent.id))
        note(connection, "erased", intent.id, len(intent.selected))
    return receipt


def _signing_key(core: Core) -> bytes:
    with core.catalog.read() as connection:
        sealed = catalog.get_meta(connection, "signing_key") or b""
    return core.master_box.open(sealed, b"mnemos/bank/signing")


def public_key_of(core: Core) -> str:
    """Of the key that the bank signs its receipts with, in base64."""
    return receipts.public_key(_signing_key(core))
