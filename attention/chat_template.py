"""A checkpoint's chat template (jinja2, as Hugging Face renders it), and the token ids of its turns.

Words of people and tools can't forge a turn: the template is rendered around placeholders, and only control
tokens that the template itself wrote are parsed as such.
"""

import datetime
import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mnemos.attention.tokenizer import Tokenizer
from mnemos.errors import ModelError, UsageError

ROLES = ("system", "user", "assistant", "tool")
# The day that a template's parts are rendered on: what memories are encoded behind must not change overnight.
PARTS_DATE = datetime.datetime(2024, 7, 26)
_SYSTEM_GAP = "\n\n"  # between a system text and the user's, where a template takes no system text

# Private-use characters: neither trimming nor a change of case touches a placeholder.
_OPEN, _CLOSE = "\ue0f1", "\ue0f2"


class Template:
    """The chat template of one checkpoint."""

    def __init__(self, source: str | None, *, name: str, bos: str = "", eos: str = "") -> None:
        """`source` is the jinja2 text, None for a model that has none; `bos` and `eos` its control tokens.

        Raises ModelError when the template doesn't parse.
        """
        self._name = name
        self._variables = {"bos_token": bos, "eos_token": eos}
        self._compiled: jinja2.Template | None = None
        if source is not None:
            try:
                self._compiled = _environment().from_string(source)
            except jinja2.TemplateError as error:
                raise ModelError(f"model {name}: its chat template doesn't parse ({error})") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        *,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """The conversation as text. Each message has a `role` (of ROLES) and a `content`; `tools` are offered
        in the form of OpenAI's API.

        Raises ModelError when there is no template or it refuses the messages, UsageError on another role.
        """
        return self._render(messages, add_generation_prompt, tools=tools)

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        *,
        fixed_date: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        if self._compiled is None:
            raise ModelError(f"model {self._name} has no chat template; use an instruction-tuned model")
        for message in messages:
            if message["role"] not in ROLES:
                raise UsageError(f"no role is called {message['role']!r}; use {', '.join(ROLES)}")
        variables: dict[str, Any] = dict(self._variables)
        if fixed_date:
            variables["strftime_now"] = PARTS_DATE.strftime
        if tools:  # of the two places that Llama 3's template knows, the one that doesn't change the message
            variables |= {"tools": [dict(tool) for tool in tools], "tools_in_user_message": False}
        try:
            return self._compiled.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                **variables,
            )
        # A template is a program of the checkpoint's author: it may raise anything at all.
        except Exception as error:
            raise ModelError(
                f"model {self._name}: its chat template failed ({type(error).__name__}: {error})"
            ) from error

    def encode(
        self,
        messages: Sequence[Mapping[str, str]],
        tokenizer: Tokenizer,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """The conversation as token ids: those of `render`, but control tokens inside contents stay text."""
        pieces = self._pieces(messages, add_generation_prompt)
        parsed: list[tuple[int, int]] = []  # where the template's own control tokens stand in the whole text
        whole = ""
        for piece, is_content in pieces:
            if not is_content:
                parsed += [
                    (len(whole) + start, len(whole) + end) for start, end in tokenizer.control_spans(piece)
                ]
            whole += piece
        if tokenizer.control_spans(whole) == parsed:
            return tokenizer.encode(whole, special=True)
        ids: list[int] = []
        at = 0
        for start, end in parsed:
            ids += tokenizer.encode(whole[at:start]) + tokenizer.encode(whole[start:end], special=True)
            at = end
        return ids + tokenizer.encode(whole[at:])

    def parts(self, role: str, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
        """Token ids that open and close a turn of `role`, found by rendering the template.

        The system turn's head holds whatever starts a conversation (BOS); the assistant's head is the
        generation prompt. Where the system text goes into the first user turn, the system turn opens that
        turn, a user turn has no head of its own, and a reply's tail opens the next one. Dates that the
        template writes are `PARTS_DATE`, so that the parts are the same every day. Raises ModelError when the
        template takes no such turn.
        """
        head, tail = self._part_texts(role)
        return tokenizer.encode(head, special=True), tokenizer.encode(tail, special=True)

    def around(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = False,
    ) -> list[str]:
        """The template's own text before, between and after the messages' contents, on `PARTS_DATE`.

        `tools` are offered to the template in the form of OpenAI's API. Raises ModelError when the template
        takes no such messages.
        """
        return self._around(messages, tools, add_generation_prompt)

    def opening(self) -> list[dict[str, str]]:
        """A system message where the template takes one, nothing where it refuses or drops it."""
        return self._opening()

    def user_head(self) -> str:
        """The text that opens a user turn behind the system turn; empty where the two are one."""
        return self._user_head()

    def _part_texts(self, role: str) -> tuple[str, str]:
        user, reply = ({"role": role, "content": "x"} for role in ("user", "assistant"))
        if role == "system":
            return self._system_parts()
        if role == "user":
            return self._user_head(), self._around([*self._opening(), user])[-1]
        if role == "assistant":
            start = [*self._opening(), user]
            without = self._render(start, False, fixed_date=True)
            prompt = self._render(start, True, fixed_date=True).removeprefix(without)
            # What stands between a reply and the next message closes one and opens the other.
            between = self._around([user, reply, user])[2]
            head = self._user_head()
            return prompt, between.removesuffix(head) if head else between
        raise UsageError(f"no turn parts for role {role!r}; use system, user or assistant")

    def _system_parts(self) -> tuple[str, str]:
        """Around a system text. A template that takes none gets it at the top of the first user turn."""
        system, user = ({"role": role, "content": "x"} for role in ("system", "user"))
        if not self._opening():
            return self._around([user])[0], _SYSTEM_GAP
        before, between, _ = self._around([system, user])
        return before, self._system_tail(between)

    def _opening(self) -> list[dict[str, str]]:
        """A system message where the template takes one, nothing where it refuses or drops it."""
        system, user = ({"role": role, "content": "x"} for role in ("system", "user"))
        try:
            self._around([system, user])
        except ModelError:
            self._around([user])  # a template that fails here too fails for good
            return []
        return [system]

    def _user_head(self) -> str:
        """What opens a user turn behind the system turn; empty where the two are one."""
        if not self._opening():
            return ""
        between = self._around([{"role": role, "content": "x"} for role in ("system", "user")])[1]
        return between[len(self._system_tail(between)) :]

    def _system_tail(self, between: str) -> str:
        """What of the text between a system and a user turn closes the system turn."""
        system, user = {"role": "system", "content": "x"}, {"role": "user", "content": "x"}
        try:
            tail = self._around([system])[-1]
        except ModelError:  # a template that insists on a user turn: turns mostly close alike
            tail = self._around([system, user])[-1]
        return tail if between.startswith(tail) else between

    def _around(
        self,
        messages: Sequence[Mapping[str, str]],
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = False,
    ) -> list[str]:
        """The template's own text before, between and after the messages' contents, on a fixed date."""
        pieces = self._pieces(messages, add_generation_prompt, fixed_date=True, tools=tools)
        texts = [""]
        for piece, is_content in pieces:
            if is_content:
                texts.append("")
            else:
                texts[-1] += piece
        if len(texts) != len(messages) + 1:
            raise ModelError(f"model {self._name}: its chat template takes no {messages[0]['role']} turn")
        return texts

    def _pieces(
        self,
        messages: Sequence[Mapping[str, str]],
        add_generation_prompt: bool,
        *,
        fixed_date: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[tuple[str, bool]]:
        """The rendered text in order, as (text, is_content): the template's own words, and the contents."""
        nonce = secrets.randbelow(10**12)
        contents: dict[str, str] = {}
        marked = []
        for index, message in enumerate(messages):
            core = message["content"].strip()
            placeholder = f"{_OPEN}{nonce:012d}{index:06d}{_CLOSE}"
            if core:
                contents[placeholder] = core
            # White space stays outside, where a template that trims contents can trim it.
            lead, _, trail = message["content"].partition(core) if core else (message["content"], "", "")
            marked.append({**message, "content": lead + (placeholder if core else "") + trail})
        rest = self._render(marked, add_generation_prompt, fixed_date=fixed_date, tools=tools)
        length = len(f"{_OPEN}{0:018d}{_CLOSE}")
        pieces: list[tuple[str, bool]] = []
        while rest:
            text, opened, rest = rest.partition(f"{_OPEN}{nonce:012d}")
            pieces.append((text, False))
            if opened:
                placeholder, rest = (opened + rest)[:length], (opened + rest)[length:]
                pieces.append((contents.get(placeholder, ""), True))
        return pieces


class _Generation(Extension):
    """`{% generation %}`, which marks what a trainer learns from; rendered as its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    # jinja2's own filter escapes characters of HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
