"""Replies of a real server on this machine, well-behaved and not; no model is loaded."""

import contextlib
import json
import socket
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.agent import serving as server

from mnemos.agent.generators import ChatMessage, Finish, Generator
from mnemos.agent.openai_generator import OpenAIGenerator
from mnemos.agent.openai_stream import MAX_LINE_BYTES, read_reply
from mnemos.agent.stopping import Stop
from mnemos.attention.sampling import Sampling
from mnemos.errors import (
    GeneratorError,
    GeneratorRefusedError,
    GeneratorResponseError,
    GeneratorTimeoutError,
    GeneratorUnreachableError,
    UsageError,
)

SECRET = "my sister Clara"
MESSAGES = [ChatMessage("system", "Be brief."), ChatMessage("user", SECRET)]
SAMPLING = Sampling(max_tokens=9, temperature=0.5, stop=("END",))


def ask(url: str, stop: Stop | None = None, **settings: Any) -> list[str | Finish]:
    with OpenAIGenerator(url, "small", **settings) as generator:
        return list(generator.generate(MESSAGES, SAMPLING, stop or Stop()))


def test_it_streams_what_the_server_says() -> None:
    usage = {"prompt_tokens": 12, "completion_tokens": 3}
    with server.serving(server.says("Hel", "lo ", "\u2603", usage=usage)) as running:
        pieces = ask(running.url, api_key="sk-test", settings={"reasoning_effort": "low"})
    assert pieces == ["Hel", "lo ", "\u2603", Finish("eos", 12, 3)]
    (asked,) = running.asked
    assert asked["path"] == "/v1/chat/completions"
    assert asked["messages"] == [{"role": m.role, "content": m.content} for m in MESSAGES]
    assert (asked["model"], asked["stream"], asked["max_tokens"]) == ("small", True, 9)
    assert (asked["stop"], asked["temperature"], asked["reasoning_effort"]) == (["END"], 0.5, "low")
    assert running.headers[0]["Authorization"] == "Bearer sk-test"


def test_the_connection_is_kept_and_the_key_is_not_shown() -> None:
    with (
        server.serving(server.says("a", reason="length")) as running,
        OpenAIGenerator(running.url + "/", "small", api_key="sk-test") as generator,
    ):
        assert isinstance(generator, Generator)
        for _ in range(3):
            assert list(generator.generate(MESSAGES, SAMPLING, Stop()))[-1] == Finish("length")
        assert "sk-test" not in repr(generator) + generator.name
        assert generator.name.startswith("small at 127.0.0.1:")


def test_a_server_that_does_not_stream_will_do() -> None:
    document = {
        "choices": [{"message": {"role": "assistant", "content": "Whole."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 4, "completion_tokens": True},
    }
    with server.serving(
        lambda handler, body: server.send(handler, json.dumps(document).encode(), "application/json")
    ) as running:
        assert ask(running.url) == ["Whole.", Finish("eos", 4, None)]


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 429, 500, 503])
def test_http_errors_say_their_number_and_no_words(status: int) -> None:
    page = f"<h1>{SECRET}</h1>".encode()
    with (
        server.serving(lambda handler, body: server.send(handler, page, "text/html", status)) as running,
        pytest.raises(GeneratorRefusedError, match=f"HTTP {status}") as caught,
    ):
        ask(running.url)
    assert caught.value.status == status and SECRET not in str(caught.value)


BAD: dict[str, tuple[str, bytes]] = {
    "cut JSON": ("text/event-stream", b'data: {"choices": [{"delta": {"content": "my sister Clara\n\n'),
    "not JSON": ("text/event-stream", b"data: my sister Clara\n\n"),
    "not UTF-8": ("text/event-stream", b'data: {"choices": [{"delta": {"content": "\xff\xfe"}}]}\n\n'),
    "a list": ("text/event-stream", b"data: [1, 2]\n\n"),
    "deep": ("text/event-stream", b"data: " + b"[" * 100_000 + b"\n\n"),
    "no delta text": ("text/event-stream", b'data: {"choices": [{"delta": {"content": 5}}]}\n\n'),
    "odd choices": ("text/event-stream", b'data: {"choices": "my sister Clara"}\n\n'),
    "odd reason": ("text/event-stream", b'data: {"choices": [{"delta": {}, "finish_reason": 7}]}\n\n'),
    "an error": ("text/event-stream", b'data: {"error": {"message": "my sister Clara"}}\n\n'),
    "nothing": ("text/event-stream", b""),
    "no end": ("text/event-stream", b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'),
    "a long line": ("text/event-stream", b"data: " + b"x" * (MAX_LINE_BYTES + 70_000)),
    "a page": ("text/html", b"<html>my sister Clara</html>"),
    "a document without choices": ("application/json", b'{"choices": []}'),
    "an invalid document": ("application/json", b'{"choices": [{"message": {"content": "my sister Clara"}'),
    "a document that is null": ("application/json", b"null"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_reply_is_said_without_its_words(case: str) -> None:
    content_type, body = BAD[case]
    with (
        server.serving(lambda handler, _: server.send(handler, body, content_type)) as running,
        pytest.raises(GeneratorResponseError, match="kept") as caught,
    ):
        ask(running.url)
    assert SECRET not in str(caught.value) and caught.value.__cause__ is None


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(GeneratorUnreachableError, match=f"127.0.0.1:{port}"):
        ask(f"http://127.0.0.1:{port}/v1")
    with pytest.raises(GeneratorUnreachableError):
        ask("http://no-such-host.invalid/v1")


def test_a_connection_that_breaks() -> None:
    def broken(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Content-Length", "5000")
        handler.end_headers()
        server.send_event(handler, server.piece("a"))
        handler.connection.shutdown(socket.SHUT_RDWR)

    with server.serving(broken) as running, pytest.raises(GeneratorUnreachableError):
        ask(running.url)


def _silent(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    time.sleep(8)


def _pinging(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    server.start_events(handler)
    for _ in range(320):
        handler.wfile.write(b": still here\n\n")
        handler.wfile.flush()
        time.sleep(0.025)


@pytest.mark.parametrize("answer", [_silent, _pinging])
def test_a_server_that_says_nothing_is_given_up(answer: Callable[..., None]) -> None:
    with server.serving(answer) as running:
        started = time.monotonic()
        with pytest.raises(GeneratorTimeoutError, match=r"0\.3 s"):
            ask(running.url, silence_s=0.3)
        assert time.monotonic() - started < 5


def test_a_stopped_turn_does_not_wait_for_the_server() -> None:
    with server.serving(_silent) as running:
        started = time.monotonic()
        assert ask(running.url, Stop(0.2)) == [Finish("interrupted")]
        assert time.monotonic() - started < 5
        stop = Stop()
        running.answer = server.says("one", "two", pause_s=0.3)
        with OpenAIGenerator(running.url, "small") as generator:
            pieces = generator.generate(MESSAGES, SAMPLING, stop)
            assert next(pieces) == "one"
            stop.set()
            assert list(pieces) == [Finish("interrupted")]


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://x/v1", "http://", "http://eve:pw@host/v1", "file:///etc/passwd"]
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(UsageError):
        OpenAIGenerator(url, "small")


@given(st.lists(st.text(max_size=20), max_size=6), st.integers(1, 40), st.sampled_from([b"\n", b"\r\n"]))
def test_events_are_read_however_they_are_cut(texts: list[str], size: int, end: bytes) -> None:
    lines = [b"data: " + json.dumps(server.piece(text)).encode() + end + end for text in texts]
    wire = b"".join([*lines, b"data:" + json.dumps(server.piece(reason="stop")).encode() + end + end])
    chunks = [wire[at : at + size] for at in range(0, len(wire), size)]
    pieces = list(read_reply("text/event-stream", chunks, "x"))
    assert "".join(each for each in pieces if isinstance(each, str)) == "".join(texts)
    assert pieces[-1] == Finish("eos")


@given(st.sampled_from(["text/event-stream", "application/json"]), st.binary(max_size=200))
def test_any_bytes_are_a_reply_or_a_clear_error(kind: str, data: bytes) -> None:
    for body in (data, b"data: " + data + b"\n\n"):
        with contextlib.suppress(GeneratorError):
            assert isinstance(list(read_reply(kind, [body], "x"))[-1], Finish)
