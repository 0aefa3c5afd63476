"""How model families write tool calls: the grammar of a reply that may hold some, and reading them back.

Sources: the chat templates that Qwen2.5 and Hermes 2 Pro, Llama 3.1 and Mistral 7B v0.3 are published with.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mnemos.agent.tools.tool import Tool
from mnemos.attention.grammar import quoted

MOST_CALLS = 4  # in one step
TagRule = Callable[[str], str]  # a tag -> how a grammar names it for one tokenizer


@dataclass(frozen=True, slots=True)
class Call:
    """A call as the model wrote it; `problem` says why it can't be run."""

    name: str
    arguments: dict[str, Any]
    problem: str | None = None


class CallFormat(Protocol):
    """One family's way."""

    @property
    def name(self) -> str: ...

    def grammar(self, tools: Sequence[Tool[..., Any]], tag: TagRule, answer: str | None) -> str:
        """Of a reply that is calls, or `answer`: a rule by that text. With None it must be calls."""
        ...

    def free_text(self, tag: TagRule) -> str:
        """A rule for an answer in words, which no call may begin in."""
        ...

    def spoken(self, text: str) -> int:
        """How many characters of a reply's beginning are words for the reader, whatever comes next."""
        ...

    def parse(self, text: str) -> list[Call]:
        """The calls in a whole reply."""
        ...


class TaggedCalls:
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, after words or without (Qwen, Hermes)."""

    name = "hermes"
    opens, closes = "<tool_call>", "</tool_call>"

    def __init__(self, most_calls: int = MOST_CALLS) -> None:
        self._more = most_calls - 1  # calls of one step

    def grammar(self, tools: Sequence[Tool[..., Any]], tag: TagRule, answer: str | None) -> str:
        opens, closes = tag(self.opens), tag(self.closes)
        more = f"({quoted(chr(10))} {opens} call){{0,{self._more}}}" if self._more else ""
        start = f"{opens} call {more}"
        if answer == "words":
            head = _lazy_head(opens)
            start = f"head call {more} | words"
        else:
            head = ""
            start = start if answer is None else f"{start} | {answer}"
        newline = quoted("\n")
        return f"start: {start}\n{head}call: {newline} body {newline} {closes}\n" + _bodies(
            tools, "arguments"
        )

    def free_text(self, tag: TagRule) -> str:
        return _words_without(self.opens, tag)

    def spoken(self, text: str) -> int:
        return _before(text, self.opens)

    def parse(self, text: str) -> list[Call]:
        bodies = text.split(self.opens)[1:]
        calls = [_read(body.partition(self.closes)[0], ("arguments", "parameters")) for body in bodies]
        return (
            calls[:-1] if len(calls) > 1 and self.closes not in bodies[-1] else calls
        )  # the last is cut off


class BareCall:
    """`{"name": ..., "parameters": {...}}` as the whole reply, behind `<|python_tag|>` or not (Llama 3)."""

    name = "llama3"
    opens = "<|python_tag|>"

    def grammar(self, tools: Sequence[Tool[..., Any]], tag: TagRule, answer: str | None) -> str:
        opens = tag(self.opens)
        if answer in (None, "words"):
            start = f"{opens}? body" + (" | words" if answer else "")
        else:  # without its tag, a call would look like any other object
            start = f"{opens} body | {answer}"
        return f"start: {start}\n" + _bodies(tools, "parameters")

    def free_text(self, tag: TagRule) -> str:
        return (
            "words: WORDS\nWORDS: /([^{\\s](.|\\n)*)?/\n"
            if _is_control(tag(self.opens))
            else ("words: WORDS\nWORDS: /([^{<\\s](.|\\n)*)?/\n")
        )

    def spoken(self, text: str) -> int:
        start = text.lstrip()
        is_call = start.startswith(("{", self.opens)) or self.opens.startswith(start)
        return 0 if is_call else len(text)

    def parse(self, text: str) -> list[Call]:
        text = text.strip()
        is_tagged = text.startswith(self.opens)
        if not is_tagged and not text.startswith("{"):
            return []
        return [_read(text.removeprefix(self.opens), ("parameters", "arguments"))]


class ListedCalls:
    """`[TOOL_CALLS][{"name": ..., "arguments": {...}}]`, after words or without (Mistral)."""

    name = "mistral"
    opens = "[TOOL_CALLS]"

    def grammar(self, tools: Sequence[Tool[..., Any]], tag: TagRule, answer: str | None) -> str:
        opens = tag(self.opens)
        calls = f'/ ?/ "[" body (", " body){{0,{MOST_CALLS - 1}}} "]"'
        if answer == "words":
            start, head = f"head {calls} | words", _lazy_head(opens)
        else:
            start, head = f"{opens} {calls}", ""
            start = start if answer is None else f"{start} | {answer}"
        return f"start: {start}\n{head}" + _bodies(tools, "arguments")

    def free_text(self, tag: TagRule) -> str:
        return _words_without(self.opens, tag)

    def spoken(self, text: str) -> int:
        return _before(text, self.opens)

    def parse(self, text: str) -> list[Call]:
        _, opened, rest = text.partition(self.opens)
        if not opened:
            return []
        calls: list[Call] = []
        left = rest.strip().removeprefix("[").lstrip()
        while left and not left.startswith("]"):
            try:
                value, end = json.JSONDecoder().raw_decode(left)
            except (ValueError, RecursionError):  # it was cut off; those before it were not
                return calls or [_unreadable()]
            calls.append(_checked(value, ("arguments", "parameters")))
            left = left[end:].lstrip(", \n")
        return calls or [_unreadable()]


HERMES, LLAMA3, MISTRAL = TaggedCalls(), BareCall(), ListedCalls()
DESCRIBED = TaggedCalls(1)  # for models whose template knows no tools
FORMATS: tuple[CallFormat, ...] = (HERMES, MISTRAL, LLAMA3)


def _bodies(tools: Sequence[Tool[..., Any]], key: str) -> str:
    """`body`: the JSON object of a call of one of the tools."""
    rules = [f"body: {' | '.join(f'body_{index}' for index in range(len(tools)))}"]
    for index, tool in enumerate(tools):
        head = quoted(f'{{"name": {json.dumps(tool.name)}, "{key}": ')
        rules.append(f'body_{index}: {head} arguments_{index} "}}"\narguments_{index}: %json {tool.grammar}')
    return "\n".join(rules) + "\n"


def _is_control(rule: str) -> bool:
    return rule.startswith("<[")


def _lazy_head(opens: str) -> str:
    """Words up to the tag that opens a call; words can't hold a control token."""
    if _is_control(opens):
        return f"head: HEAD {opens}\nHEAD: /(.|\\n)*/\n"
    return f"head[lazy]: /(.|\\n)*?/ {opens}\n"


def _words_without(opens: str, tag: TagRule) -> str:
    if _is_control(tag(opens)):
        return "words: WORDS\nWORDS: /(.|\\n)*/\n"
    escaped = re.escape(opens)
    return f"words: WORDS\nWORDS: /(.|\\n)*/ & ~/(.|\\n)*{escaped}(.|\\n)*/\n"


def _before(text: str, opens: str) -> int:
    """Characters before the first `opens`, or before what may still become one."""
    found = text.find(opens)
    if found >= 0:
        return found
    for length in range(min(len(opens) - 1, len(text)), 0, -1):
        if opens.startswith(text[-length:]):
            return len(text) - length
    return len(text)


def _read(text: str, keys: Sequence[str]) -> Call:
    try:
        return _checked(json.loads(text), keys)
    except (ValueError, RecursionError):
        return _unreadable()


def _checked(value: Any, keys: Sequence[str]) -> Call:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return _unreadable()
    arguments: Any = next((value[key] for key in keys if key in value), {})
    if not isinstance(arguments, dict):
        return Call(value["name"], {}, "the arguments are not a JSON object")
    return Call(value["name"], arguments)


def _unreadable() -> Call:
    return Call("", {}, "the call is not a JSON object with a name and arguments, or it was cut off")
