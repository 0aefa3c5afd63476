"""Where tools stand in a prompt: as the model's own template writes them, or in plain words where it knows
none.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

from mnemos.agent.prompt import SystemParts, TurnTokens
from mnemos.agent.tools.formats import DESCRIBED, FORMATS, CallFormat
from mnemos.agent.tools.tool import Tool
from mnemos.attention.models import LanguageModel
from mnemos.errors import InvalidSchemaError, ModelError

_PROBE = "probe_tool"
_CALL_ID = "call00001"  # nine letters and digits, as Mistral's template insists
_USER, _REPLY = {"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}
_RESULT = {"role": "tool", "content": "x", "name": _PROBE, "tool_call_id": _CALL_ID}
_DESCRIBED = """You can call a function. To call one, reply with nothing but:
<tool_call>
{"name": "the function's name", "arguments": {"argument": "value"}}
</tool_call>
You are then told what it returned. Answer the user with that.

The functions are:
"""
_RETURNED, _ANSWER = "Here is what the function returned: ", ".\nNow answer my question in one sentence."


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands around the results of one step, which close the reply before and open the next one."""

    parts: Sequence[Sequence[int]]  # one more than results
    is_quoted: bool = False  # whether a result is the inside of a JSON string


@dataclass(slots=True)
class ToolPrompt:
    """One model's way to be told of tools, to call them and to be given their results."""

    calls: CallFormat
    is_native: bool  # whether the model's own template writes the tools
    system: SystemParts
    model: LanguageModel
    schemas: Sequence[Mapping[str, Any]]
    _frames: dict[int, Frame] = field(default_factory=dict)

    def frame(self, count: int) -> Frame:
        """What stands around `count` results."""
        if count not in self._frames:
            native = _native_frame(self.model, self.schemas, count) if self.is_native else None
            self._frames[count] = native or _plain_frame(self.model, count)
        return self._frames[count]


def tool_prompt(model: LanguageModel, tools: Sequence[Tool[..., Any]]) -> ToolPrompt:
    """How `model` is told of `tools`. Raises `InvalidSchemaError` where one holds a control token."""
    schemas = [each.to_openai() for each in tools]
    for each, schema in zip(tools, schemas, strict=True):
        if model.tokenizer.control_spans(json.dumps(schema, ensure_ascii=False)):
            raise InvalidSchemaError(
                f"tool {each.name}: its description holds a control token of {model.name}; reword it"
            )
    calls = _native_format(model)
    system = None if calls is None else _native_system(model, schemas)
    if calls is None or system is None or _native_frame(model, schemas, 1) is None:
        functions = [json.dumps(schema["function"], ensure_ascii=False) for schema in schemas]
        system = SystemParts(words=_DESCRIBED + "\n".join(functions))
        return ToolPrompt(DESCRIBED, False, system, model, schemas)
    return ToolPrompt(calls, True, system, model, schemas)


def _native_format(model: LanguageModel) -> CallFormat | None:
    """The format that the template writes a call in; None when it knows no tools, or writes another one."""
    template = model.template
    function = {"name": _PROBE, "arguments": {"x": 1}}
    call = {"role": "assistant", "content": "", "tool_calls": [{"id": _CALL_ID, "function": function}]}
    parameters = {"type": "object", "properties": {"x": {"type": "integer"}}}
    told = {"name": _PROBE, "description": "x", "parameters": parameters}
    offered = [{"type": "function", "function": told}]
    try:
        asked = template.render([_USER], False, tools=offered)
        head = template.render([_USER], True, tools=offered).removeprefix(asked)
        if _PROBE not in asked:
            return None
        written = template.render([_USER, call], False, tools=offered).removeprefix(asked)
        tail = template.around([*template.opening(), _USER, _REPLY])[-1]
    except ModelError:
        return None
    written = written.removeprefix(head).strip().removesuffix(tail.strip()).strip()
    for each in FORMATS:
        read = each.parse(written)
        if read and read[0].name == _PROBE and read[0].arguments == {"x": 1}:
            return each
    return None


def _native_system(model: LanguageModel, schemas: Sequence[Mapping[str, Any]]) -> SystemParts | None:
    """The system turn's parts with tools in them; None where the template puts those into the message."""
    template, encode = model.template, model.tokenizer.encode
    opening, user_head = template.opening(), template.user_head()
    plain = template.around([*opening, _USER])
    told = template.around([*opening, _USER], tools=schemas)
    tail = None
    if opening and told[1] != plain[1]:
        if not told[1].endswith(user_head):
            return None
        tail = encode(told[1].removesuffix(user_head), special=True)
    if told[0] == plain[0]:
        return None if tail is None else SystemParts(tail=tail)
    old, new = (encode(texts[0], special=True) for texts in (plain, told))
    return SystemParts(head=new, behind_memories=_added(old, new), tail=tail)


def _added(old: Sequence[int], new: Sequence[int]) -> list[int]:
    """The tokens that `new` has and `old` has not."""
    steps = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    return [token for kind, _, _, start, end in steps if kind != "equal" for token in new[start:end]]


def _native_frame(model: LanguageModel, schemas: Sequence[Mapping[str, Any]], count: int) -> Frame | None:
    template = model.template
    messages = [*template.opening(), _USER, _REPLY, *[_RESULT] * count]
    try:
        texts = template.around(messages, tools=schemas, add_generation_prompt=True)[-(count + 1) :]
    except ModelError:
        return None
    parts = [model.tokenizer.encode(text, special=True) for text in texts]
    return Frame(parts, is_quoted=texts[0].endswith('"'))


def _plain_frame(model: LanguageModel, count: int) -> Frame:
    """Results in a user turn of their own, in words that small models follow better than tags."""
    turn, encode = TurnTokens.of(model), model.tokenizer.encode
    return Frame(
        [
            [*turn.reply_tail, *turn.user_head, *encode(_RETURNED)],
            *[encode(f"\n{_RETURNED}")] * (count - 1),
            [*encode(_ANSWER), *turn.user_tail, *turn.reply_head],
        ]
    )
