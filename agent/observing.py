"""What a turn was like, for logs and traces: kinds, ids, counts and times. Never words, and no namespace,
whose name may be a person's.
"""

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field

from mnemos.agent import logs, spans
from mnemos.agent.events import Event, Recalled, RecallStarted, Reply, Stored

Value = str | int | float | bool


@dataclass
class Phase:
    """A stretch of a turn; moments in nanoseconds of Unix time."""

    name: str
    start_ns: int
    end_ns: int
    fields: dict[str, Value] = field(default_factory=dict)


@dataclass
class Observed:
    """A turn as far as it came. Phases are in order and don't overlap."""

    start_ns: int
    end_ns: int = 0
    status: str = "interrupted"  # or complete, timeout, failed
    error: str | None = None  # a type's name
    fields: dict[str, Value] = field(default_factory=dict)
    phases: list[Phase] = field(default_factory=list)


def observed(events: Generator[Event]) -> Generator[Event]:
    """The same events; at their end, however it comes, a log line and spans say how the turn went."""
    if not (logs.is_on() or spans.is_on()):
        yield from events
        return
    context = spans.current()
    watch = _Watch(Observed(time.time_ns()))
    try:
        with closing(events):
            for event in events:
                watch.sees(event)
                yield event
                watch.goes_on()
    except GeneratorExit:
        raise
    except BaseException as error:
        watch.turn.status = "failed" if isinstance(error, Exception) else "interrupted"
        watch.turn.error = type(error).__name__
        raise
    finally:
        watch.turn.end_ns = time.time_ns()
        logs.turn_ended(watch.turn)
        spans.turn_ended(watch.turn, context)


class _Watch:
    """Makes phases of events and of the times that they tell.

    The time that the reader of the events takes for itself stands between phases where it can be told apart.
    """

    def __init__(self, turn: Observed) -> None:
        self.turn = turn
        self._since = turn.start_ns  # when the turn last went on
        self._answer_from = turn.start_ns
        self._message_ms = 0.0

    def goes_on(self) -> None:
        self._since = time.time_ns()

    def sees(self, event: Event) -> None:
        now = time.time_ns()
        if isinstance(event, RecallStarted):
            self._message_ms = event.store_ms
            self._add("store", now - _ns(event.store_ms), now, {"part": "message"})
            self.turn.fields["kept"] = event.exchange_id is not None
        elif isinstance(event, Recalled):
            self._recalled(event, now)
        elif isinstance(event, Reply):
            self._replied(event, now)
        elif isinstance(event, Stored):
            self._add("encode", self._since, now, {"encode_ms": event.encode_ms})

    def _recalled(self, event: Recalled, now: int) -> None:
        paged_from = now - _ns(event.page_ms)
        self._add("recall", self._since, paged_from, {"memories": len(event.memories), "mode": event.mode})
        if event.mode == "kv":
            fields: dict[str, Value] = {"tokens": event.paged_tokens, "bytes": event.paged_bytes}
            self._add("page_in", paged_from, now, fields)
        self._answer_from = now
        self.turn.fields |= {"memories": len(event.memories), "mode": event.mode}

    def _replied(self, event: Reply, now: int) -> None:
        usage = event.usage
        stored_from = now - _ns(usage.store_ms - self._message_ms)
        start = self._answer_from
        decoded_from = min(start + _ns(usage.prefill_ms), stored_from)
        self._add("prefill", start, decoded_from, {"tokens": usage.prefill_tokens})
        self._add("decode", decoded_from, stored_from, {"tokens": usage.decoded_tokens})
        self._add("store", stored_from, now, {"part": "reply", "memories": len(event.stored)})
        self.turn.status = event.status
        self.turn.fields |= {
            "stop_reason": event.stop_reason,
            "changed": any(each.changed_by for each in event.stored),
            **{name: _rounded(value) for name, value in usage.model_dump(exclude={"type"}).items()},
        }
        for name, value in (("session", event.session_id), ("exchange", event.exchange_id)):
            if value is not None:
                self.turn.fields[name] = value

    def _add(self, name: str, start: int, end: int, fields: dict[str, Value]) -> None:
        self.turn.phases.append(Phase(name, min(start, end), end, fields))


def _ns(ms: float) -> int:
    return int(ms * 1e6)


def _rounded(value: float) -> float:
    return round(value, 3) if isinstance(value, float) else value
