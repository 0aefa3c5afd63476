"""A turn as OpenTelemetry spans: `mnemos.turn`, and below it recall, page_in, prefill, decode, store, encode.

They go to whatever tracer provider the application has set up. Needs the extra `otel`; where OpenTelemetry is
not installed, or no provider is set up, nothing is made. Spans are made when the turn has ended, from the
times it noted, so that they cost nothing while it runs. Attributes are counts, ids and times, never words.
"""

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Tracer

    from mnemos.agent.observing import Observed

_SCOPE = "mnemos"


@cache
def _is_installed() -> bool:
    return find_spec("opentelemetry") is not None and find_spec("opentelemetry.trace") is not None


def is_on() -> bool:
    """Whether somebody has set up a tracer provider."""
    if not _is_installed():
        return False
    from opentelemetry import trace

    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider | trace.NoOpTracerProvider)


def current() -> "Context | None":
    """The caller's context, whose span the turn's will be below."""
    if not _is_installed():
        return None
    from opentelemetry import context

    return context.get_current()


def turn_ended(turn: "Observed", parent: "Context | None") -> None:
    if not is_on():
        return
    from opentelemetry import trace
    from opentelemetry.trace import Status, StatusCode

    tracer: Tracer = trace.get_tracer(_SCOPE)
    attributes: dict[str, Any] = {f"mnemos.{name}": value for name, value in turn.fields.items()}
    attributes["mnemos.status"] = turn.status
    if turn.error is not None:
        attributes["error.type"] = turn.error
    whole = tracer.start_span("mnemos.turn", parent, attributes=attributes, start_time=turn.start_ns)
    if turn.status == "failed":
        whole.set_status(Status(StatusCode.ERROR))
    inside = trace.set_span_in_context(whole, parent)
    for phase in turn.phases:
        fields = {f"mnemos.{name}": value for name, value in phase.fields.items()}
        span = tracer.start_span(f"mnemos.{phase.name}", inside, attributes=fields, start_time=phase.start_ns)
        span.end(phase.end_ns)
    whole.end(turn.end_ns)
