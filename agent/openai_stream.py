"""Reading chat completions as they come over the wire: server-sent events of JSON, or one JSON document.

The forms are those of OpenAI's chat completions API and of the event stream of the HTML standard, section
9.2. Whatever else comes is a `GeneratorResponseError`, without a word of it.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from mnemos.agent.generators import Finish
from mnemos.errors import GeneratorResponseError

MAX_LINE_BYTES = 1 << 20
MAX_DOCUMENT_BYTES = 8 << 20


def read_reply(content_type: str, chunks: Iterable[bytes], where: str) -> Iterator[str | Finish]:
    """The pieces of a reply and its end. `where` names the server in errors."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "text/event-stream":
        return _of_events(chunks, where)
    if kind == "application/json":
        return _of_document(chunks, where)
    raise GeneratorResponseError(
        f"{where} answered with something else than a reply; is it a chat completions server? The message is "
        "kept"
    )


def _of_events(chunks: Iterable[bytes], where: str) -> Iterator[str | Finish]:
    reason: str | None = None
    tokens: tuple[int | None, int | None] = (None, None)
    for data in _events(chunks, where):
        if data.strip() == b"[DONE]":
            break
        body = _parsed(data, where)
        tokens = _tokens(body) or tokens
        choice = _choice(body, where, may_be_none=True)
        if choice is None:
            continue
        delta = choice.get("delta")
        if delta is not None:
            text = _content(delta, where)
            if text:
                yield text
        reason = _reason(choice, where) or reason
    if reason is None:
        raise GeneratorResponseError(
            f"the reply of {where} broke off before its end; what came of it is kept. Send the message again"
        )
    yield Finish(reason, *tokens)


def _of_document(chunks: Iterable[bytes], where: str) -> Iterator[str | Finish]:
    data = b""
    for chunk in chunks:
        data += chunk
        if len(data) > MAX_DOCUMENT_BYTES:
            raise _wrong(where, "is too large")
    body = _parsed(data, where)
    choice = _choice(body, where, may_be_none=False)
    assert choice is not None
    text = _content(choice.get("message"), where)
    if text:
        yield text
    yield Finish(_reason(choice, where) or "eos", *(_tokens(body) or (None, None)))


def _events(chunks: Iterable[bytes], where: str) -> Iterator[bytes]:
    """The data of each event; lines of one event are joined by line feeds."""
    data: list[bytes] = []
    for line in _lines(chunks, where):
        if not line:
            if data:
                yield b"\n".join(data)
            data = []
        elif line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
            if sum(map(len, data)) > MAX_LINE_BYTES:
                raise _wrong(where, "has an event that is too large")
    if data:
        yield b"\n".join(data)


def _lines(chunks: Iterable[bytes], where: str) -> Iterator[bytes]:
    held = b""
    for chunk in chunks:
        held += chunk
        *whole, held = held.split(b"\n")
        for line in whole:
            yield line.removesuffix(b"\r")
        if len(held) > MAX_LINE_BYTES:
            raise _wrong(where, "has a line that is too long")
    if held:
        yield held.removesuffix(b"\r")


def _parsed(data: bytes, where: str) -> dict[str, Any]:
    try:
        body = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        raise _wrong(where, "is not valid JSON") from None
    if not isinstance(body, dict):
        raise _wrong(where, "is not of the form of a chat completion")
    if body.get("error") is not None:
        raise GeneratorResponseError(
            f"{where} reported an error in the middle of its reply; the server's own log says which. The "
            "message is kept"
        )
    return body


def _choice(body: dict[str, Any], where: str, *, may_be_none: bool) -> dict[str, Any] | None:
    choices = body.get("choices")
    if may_be_none and (choices is None or choices == []):  # an event that only counts tokens
        return None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise _wrong(where, "is not of the form of a chat completion")
    return choices[0]


def _content(part: object, where: str) -> str:
    if not isinstance(part, dict) or not isinstance(part.get("content"), str | None):
        raise _wrong(where, "is not of the form of a chat completion")
    return part.get("content") or ""


def _reason(choice: dict[str, Any], where: str) -> str | None:
    reason = choice.get("finish_reason")
    if not isinstance(reason, str | None):
        raise _wrong(where, "is not of the form of a chat completion")
    known = {
        "stop": "eos",
        "length": "length",
        "content_filter": "content_filter",
        "tool_calls": "tool_calls",
    }
    return None if reason is None else known.get(reason, "eos")


def _tokens(body: dict[str, Any]) -> tuple[int | None, int | None] | None:
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return None
    prompt, reply = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return _count(prompt), _count(reply)


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _wrong(where: str, what: str) -> GeneratorResponseError:
    return GeneratorResponseError(
        f"what {where} sent {what}, so the reply can't be read; the message is kept. See the server's log"
    )
