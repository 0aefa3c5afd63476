"""Between the store's plain values and the typed results that people get."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from mnemos.memory.records import AuditLine, Fidelity, ForgetPlan, Memory, Receipt
from mnemos.store.records import ErasePlan, MemoryRecord


def to_memory(record: MemoryRecord) -> Memory:
    fidelity: Fidelity = "pending"
    if record.trace_fingerprint is not None:
        fidelity = "vivid" if record.kv_bytes else "faint"
    return Memory(
        id=record.id,
        namespace=record.namespace,
        kind=record.kind,
        text=record.text,
        reply=record.reply,
        speaker=record.speaker,
        title=record.title,
        source=record.source,
        session_id=record.session_id,
        created_at=record.created_at,
        expires_at=record.expires_at,
        tags=record.tags,
        status=record.status,
        pinned=record.pinned,
        hidden=record.hidden,
        fidelity=fidelity,
        tokens=record.tokens,
        text_bytes=record.text_bytes,
        trace_bytes=record.trace_bytes,
    )


def plan_from_store(plan: ErasePlan) -> ForgetPlan:
    return ForgetPlan(
        token=plan.token,
        namespace=plan.namespace,
        selected=tuple(to_memory(record) for record in plan.selected),
        dependants=tuple(to_memory(record) for record in plan.dependants),
        cascade=plan.cascade,
        bytes_on_disk=plan.bytes_on_disk,
        takes_all=plan.takes_all,
    )


def plan_to_store(plan: ForgetPlan) -> ErasePlan:
    return ErasePlan(
        token=plan.token,
        namespace=plan.namespace,
        selected=tuple(_to_record(memory) for memory in plan.selected),
        dependants=tuple(_to_record(memory) for memory in plan.dependants),
        cascade=plan.cascade,
        bytes_on_disk=plan.bytes_on_disk,
    )


def _to_record(memory: Memory) -> MemoryRecord:
    """A plan's memory as the store knows it; the store erases by id and reads its own rows for the rest."""
    shared = memory.model_dump(exclude={"fidelity"})
    return MemoryRecord(**shared, ordinal=0, trace_fingerprint=None)


def _moment(at_us: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at_us)


def audit_from_store(line: Mapping[str, Any]) -> AuditLine:
    actor, _, user = line["actor"].partition(":")
    return AuditLine(
        seq=line["seq"],
        at=_moment(line["at_us"]),
        actor=actor,
        user=user or None,
        action=line["action"],
        subject=line["subject"],
        count=line["count"],
        digest=line["digest"],
    )


def receipt_from_store(document: Mapping[str, Any], namespace: str) -> Receipt:
    return Receipt(
        id=document["id"],
        namespace=namespace,
        forgotten=tuple(document["erased"]),
        rewritten=document["rewritten"],
        document=document,
    )
