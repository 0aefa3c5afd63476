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

    def render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text. Each message has a `role` (of ROLES) and a `content`.

        Raises ModelError when there is no template or it refuses the messages, UsageError on another role.
        """
        if self._compiled is None:
            raise ModelError(f"model {self._name} has no chat template; use an instruction-tuned model")
        for message in messages:
            if message["role"] not in ROLES:
                raise UsageError(f"no role is called {message['role']!r}; use {', '.join(ROLES)}")
        try:
            return self._compiled.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                **self._variables,
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
        generation prompt. Raises ModelError when the template takes no such turn.
        """
        head, tail = self._part_texts(role)
        return tokenizer.encode(head, special=True), tokenizer.encode(tail, special=True)

    def _part_texts(self, role: str) -> tuple[str, str]:
        system, user, reply = ({"role": role, "content": "x"} for role in ("system", "user", "assistant"))
        if role == "system":
            before, between, _ = self._around([system, user])
            return before, self._system_tail(between)
        if role == "user":
            between, after = self._around([system, user])[1:]
            return between[len(self._system_tail(between)) :], after
        if role == "assistant":
            without = self.render([system, user], add_generation_prompt=False)
            prompt = self.render([system, user], add_generation_prompt=True).removeprefix(without)
            return prompt, self._around([system, user, reply])[-1]
        raise UsageError(f"no turn parts for role {role!r}; use system, user or assistant")

    def _system_tail(self, between: str) -> str:
        """What of the text between a system and a user turn closes the system turn."""
        system, user = {"role": "system", "content": "x"}, {"role": "user", "content": "x"}
        try:
            tail = self._around([system])[-1]
        except ModelError:  # a template that insists on a user turn: turns mostly close alike
            tail = self._around([system, user])[-1]
        return tail if between.startswith(tail) else between

    def _around(self, messages: Sequence[Mapping[str, str]]) -> list[str]:
        """The template's own text before, between and after the messages' contents."""
        pieces = self._pieces(messages, add_generation_prompt=False)
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
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool
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
        rest = self.render(marked, add_generation_prompt)
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
