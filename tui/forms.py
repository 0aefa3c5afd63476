"""The JSON forms that commands print. docs/cli.md documents each field."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mnemos.agent.events import Reply
    from mnemos.memory.records import ForgetPlan, Memory, RecalledMemory, Receipt
    from mnemos.store.records import RepairReport, SessionRecord, VerifyReport

Form = dict[str, Any]


def memory(value: "Memory") -> Form:
    return value.model_dump(mode="json")


def recalled(values: "Iterable[RecalledMemory]") -> list[Form]:
    """A memory's own fields, with those of its recall beside them."""
    return [memory(value.memory) | value.model_dump(mode="json", exclude={"memory"}) for value in values]


def reply(value: "Reply") -> Form:
    return {
        "text": value.text,
        "memories": recalled(value.memories),
        "session": value.session_id,
        "exchange": value.exchange_id,
        "status": value.status,
        "stop_reason": value.stop_reason,
        "stored": [each.model_dump(mode="json", exclude={"type"}) for each in value.stored],
        "usage": value.usage.model_dump(mode="json", exclude={"type"}),
    }


def plan(value: "ForgetPlan") -> Form:
    return {
        "token": value.token,
        "namespace": value.namespace,
        "takes_all": value.takes_all,
        "likes": [each.model_dump(mode="json") for each in value.likes],
        "selected": [memory(each) for each in value.selected],
        "dependants": [memory(each) for each in value.dependants],
        "cascade": value.cascade,
        "bytes_on_disk": value.bytes_on_disk,
    }


def forgotten(done: "ForgetPlan", receipt: "Receipt") -> Form:
    return {
        "forgotten": [each.id for each in done.selected],
        "dependants": [each.id for each in done.dependants],
        "likes": [each.model_dump(mode="json", exclude={"text"}) for each in done.likes],
        "receipt": dict(receipt.document),
    }


def session(value: "SessionRecord") -> Form:
    form = asdict(value)
    return form | {name: form[name].isoformat() for name in ("created_at", "updated_at")}


def verify(value: "VerifyReport") -> Form:
    return {
        "ok": value.ok,
        "problems": [asdict(problem) for problem in value.problems],
        "quarantined": [asdict(problem) for problem in value.quarantined],
        "checked": dict(value.checked),
    }


def repair(value: "RepairReport") -> Form:
    """What a verify says afterwards, with what was done."""
    return verify(value.after) | {"repaired": [asdict(problem) for problem in value.repaired]}
