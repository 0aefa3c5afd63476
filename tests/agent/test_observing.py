"""What logs and traces tell of a turn, and that no word of it is in them."""

import asyncio
import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.agent.serving import says, serving
from tests.memory.conftest import tiny_model

from mnemos import Agent, MemoryBank
from mnemos.agent.events import Reply, TokenDelta
from mnemos.agent.logs import JsonFormatter
from mnemos.agent.openai_generator import OpenAIGenerator
from mnemos.agent.policies import Draft
from mnemos.agent.redaction import Redactor
from mnemos.attention.models import LanguageModel
from mnemos.attention.sampling import Sampling
from mnemos.errors import GeneratorUnreachableError, PolicyError

__all__ = ["tiny_model"]

SHORT = Sampling(max_tokens=8)
NAME = "clarissa-namespace"
FACT = "My sister Clarissa works as a nurse in Leeds."
QUESTION = "What does my sister Clarissa do for a living? password=hunter2xyz"
WORDS = ("clarissa", "nurse", "leeds", "living", "hunter2")


class Lines(logging.Handler):
    """Every record of Mnemos, as text and as JSON."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(JsonFormatter())
        self.records: list[logging.LogRecord] = []
        self.text = io.StringIO()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        plain = logging.Formatter("%(levelname)s %(name)s %(message)s").format(record)
        self.text.write(f"{plain}\n{self.format(record)}\n{vars(record)!r}\n")


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler, root = Lines(), logging.getLogger()
    before = root.level
    root.setLevel(logging.DEBUG)
    root.addHandler(handler)
    yield handler
    root.removeHandler(handler)
    root.setLevel(before)


@pytest.fixture(scope="module")
def provider() -> InMemorySpanExporter:
    """OpenTelemetry takes one provider in a process."""
    exporter = InMemorySpanExporter()
    made = TracerProvider()
    made.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(made)
    return exporter


@pytest.fixture
def exporter(provider: InMemorySpanExporter) -> InMemorySpanExporter:
    provider.clear()
    return provider


@pytest.fixture
def language_model(tiny_model: LanguageModel) -> LanguageModel:
    """What is tested here is the same for every model."""
    return tiny_model


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[MemoryBank]:
    with MemoryBank.open(tmp_path / "bank") as opened:
        opened.remember(FACT, namespace=NAME)
        yield opened


def assert_wordless(lines: Lines, exporter: InMemorySpanExporter, *more: str) -> None:
    seen = lines.text.getvalue() + "".join(span.to_json() for span in exporter.get_finished_spans())
    assert seen
    for word in (*WORDS, *more):
        assert word not in seen.casefold(), f"{word!r} got out"


def agent_of(bank: MemoryBank, model: LanguageModel, **settings: Any) -> Agent:
    return Agent(bank, model=model, namespace=NAME, **{"sampling": SHORT, **settings})


def test_a_turn_tells_its_times_and_counts_and_no_words(
    bank: MemoryBank, language_model: LanguageModel, lines: Lines, exporter: InMemorySpanExporter
) -> None:
    with trace.get_tracer("test").start_as_current_span("request") as request:
        reply = agent_of(bank, language_model, policies=[Redactor()]).run_sync(QUESTION)
    (record,) = [each for each in lines.records if each.name == "mnemos.agent"]
    fields = record.mnemos  # type: ignore[attr-defined]
    assert (record.levelno, fields["status"], fields["memories"]) == (logging.INFO, "complete", 1)
    assert (fields["exchange"], fields["session"]) == (reply.exchange_id, reply.session_id)
    assert fields["decoded_tokens"] == reply.usage.decoded_tokens and fields["changed"] is True
    assert record.getMessage().startswith("turn status=complete total_ms=")
    assert json.loads(JsonFormatter().format(record))["route_ms"] == round(reply.usage.route_ms, 3)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    whole = spans.pop("mnemos.turn")
    assert whole.parent is not None and whole.parent.span_id == request.get_span_context().span_id
    assert set(spans) == {
        f"mnemos.{each}" for each in ("store", "recall", "page_in", "prefill", "decode", "encode")
    } | {"request"}
    del spans["request"]
    for span in spans.values():
        assert span.parent is not None and span.parent.span_id == whole.context.span_id
        assert whole.start_time <= span.start_time <= span.end_time <= whole.end_time
    paged = spans["mnemos.page_in"]
    assert (paged.end_time - paged.start_time) / 1e6 == pytest.approx(reply.usage.page_ms, rel=0.01)
    prefill = spans["mnemos.prefill"]
    assert (prefill.end_time - prefill.start_time) / 1e6 == pytest.approx(reply.usage.prefill_ms, rel=0.01)
    assert_wordless(lines, exporter, *(word for word in reply.text.casefold().split() if len(word) > 6))


def test_turns_that_fail_tell_the_kind_of_error_alone(
    bank: MemoryBank, language_model: LanguageModel, lines: Lines, exporter: InMemorySpanExporter
) -> None:
    class Failing:
        def before_write(self, draft: Draft) -> Draft:
            raise ValueError(f"no room for {draft.text}")

    with pytest.raises(PolicyError):
        agent_of(bank, language_model, policies=[Failing()]).run_sync(QUESTION)
    generator = OpenAIGenerator("http://127.0.0.1:9/v1", "m")
    with pytest.raises(GeneratorUnreachableError):
        agent_of(bank, language_model, generator=generator).run_sync(QUESTION)
    stream = agent_of(bank, language_model, sampling=Sampling(max_tokens=40)).stream_sync(QUESTION)
    for event in stream:
        if isinstance(event, TokenDelta):
            break
    stream.close()
    turns = [each for each in lines.records if each.name == "mnemos.agent"]
    assert [(each.levelno, each.mnemos["status"], each.mnemos.get("error")) for each in turns] == [  # type: ignore[attr-defined]
        (logging.WARNING, "failed", "PolicyError"),
        (logging.WARNING, "failed", "GeneratorUnreachableError"),
        (logging.INFO, "interrupted", None),
    ]
    whole = [span for span in exporter.get_finished_spans() if span.name == "mnemos.turn"]
    assert [span.status.is_ok for span in whole] == [False, False, True]
    assert [(span.attributes or {}).get("error.type") for span in whole] == [
        "PolicyError",
        "GeneratorUnreachableError",
        None,
    ]
    assert_wordless(lines, exporter)


def test_incognito_and_asynchronous_turns_are_observed_the_same_way(
    bank: MemoryBank, language_model: LanguageModel, lines: Lines, exporter: InMemorySpanExporter
) -> None:
    async def ask() -> Reply:
        with trace.get_tracer("test").start_as_current_span("request"):
            return await agent_of(bank, language_model).run(QUESTION, incognito=True)

    asyncio.run(ask())
    (record,) = [each for each in lines.records if each.name == "mnemos.agent"]
    assert record.mnemos["kept"] is False and "exchange" not in record.mnemos  # type: ignore[attr-defined]
    spans = {span.name: span for span in exporter.get_finished_spans()}
    request, whole = spans["request"], spans["mnemos.turn"]
    assert whole.parent is not None and whole.parent.span_id == request.context.span_id
    assert "mnemos.encode" not in spans
    assert_wordless(lines, exporter)


def test_a_turn_as_text_is_no_more_talkative(
    bank: MemoryBank, language_model: LanguageModel, lines: Lines, exporter: InMemorySpanExporter
) -> None:
    """Down to the records of the HTTP client, whose server sends the words back."""
    with serving(says("Clarissa is a nurse ", "in Leeds.")) as server:
        generator = OpenAIGenerator(server.url, "m", api_key="sk-hunter2")
        reply = agent_of(bank, language_model, generator=generator).run_sync(QUESTION)
    assert "nurse" in reply.text and FACT in server.asked[0]["messages"][0]["content"]
    (record,) = [each for each in lines.records if each.name == "mnemos.agent"]
    assert record.mnemos["mode"] == "text"  # type: ignore[attr-defined]
    assert "mnemos.page_in" not in {span.name for span in exporter.get_finished_spans()}
    assert_wordless(lines, exporter)


def test_without_opentelemetry_there_are_no_spans_and_no_error() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from mnemos.agent import spans\nfrom mnemos.agent.observing import Observed\n"
        "assert not spans.is_on() and spans.current() is None\n"
        "spans.turn_ended(Observed(1, 2), None)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_without_a_provider_no_spans_are_made_and_no_sdk_is_loaded() -> None:
    code = (
        "import sys\nfrom mnemos.agent import spans\n"
        "assert not spans.is_on()\nassert 'opentelemetry.sdk' not in sys.modules\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_other_records_keep_their_message_in_json() -> None:
    record = logging.LogRecord("x", logging.INFO, "f", 1, "hello %s", ("you",), None)
    assert json.loads(JsonFormatter().format(record))["message"] == "hello you"
