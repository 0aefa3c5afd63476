"""Conditions as people write them, and back:

    tag:work and not (session:3f2a or match:"Clara") and before:2026-01-01

    expression = both {"or" both}
    both       = one {"and" one}
    one        = "not" one | "(" expression ")" | field (":" | "=") value
    value      = a word without blanks, parentheses or quotes | "words"

In quotes, \\" is a quote and \\\\ a backslash. `not` binds closest, `or` least. `id` takes several ids with
commas between; `like:"words"@2.5` a threshold.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from mnemos.errors import InvalidSelectorError
from mnemos.memory import moments
from mnemos.store.selectors import (
    MAX_DEPTH,
    And,
    Before,
    Condition,
    Ids,
    Like,
    Marked,
    Matching,
    Not,
    OfKind,
    Or,
    Session,
    Since,
    Source,
    Tag,
    conditions,
)

MAX_CHARS = 64 * 1024
_BLANK = re.compile(r"\s*")
_NAME = re.compile(r"[^\W\d_]+")
_WORD = re.compile(r'[^\s()"]+')
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_NUMBER = re.compile(r"@([^\s()\"]+)")
_JOINS = ("and", "or", "not")
_SIGNS = (":", "=")  # between a field and its value

_FIELDS: dict[str, Callable[[str], Condition]] = {
    "id": lambda value: Ids(tuple(value.split(","))),
    "session": Session,
    "tag": Tag,
    "match": Matching,
    "source": Source,
    "kind": OfKind,
    "is": Marked,
    "since": lambda value: Since(moments.moment(value)),
    "before": lambda value: Before(moments.moment(value)),
    "until": lambda value: Before(moments.end_of(value)),
    "like": Like,
}


def parse_where(text: str) -> Condition:
    """The condition. InvalidSelectorError says at which character (counted from 1) it can't be read."""
    if len(text) > MAX_CHARS:
        raise InvalidSelectorError(f"the selector is over {MAX_CHARS:,} characters; forget in several steps")
    parser = _Parser(text)
    found = parser.expression(1)
    if not parser.at_end():
        raise parser.error("expected `and`, `or` or the end")
    list(conditions(found))
    return found


def print_where(condition: Condition) -> str:
    """The text that `parse_where` reads as that condition."""
    return _print(condition, 0)


@dataclass
class _Parser:
    text: str
    at: int = 0

    def error(self, expected: str, at: int | None = None) -> InvalidSelectorError:
        """Without the words that were read: they may be a memory's."""
        place = self.at if at is None else at
        return InvalidSelectorError(f"the selector can't be read at character {place + 1}: {expected}")

    def skip(self) -> None:
        blank = _BLANK.match(self.text, self.at)
        assert blank is not None
        self.at = blank.end()

    def at_end(self) -> bool:
        self.skip()
        return self.at == len(self.text)

    def takes(self, join: str) -> bool:
        """Steps over the word if it comes next."""
        self.skip()
        name = _NAME.match(self.text, self.at)
        if name is None or name[0].lower() != join or self.text[name.end() : name.end() + 1] in _SIGNS:
            return False
        self.at = name.end()
        return True

    def expression(self, depth: int) -> Condition:
        parts = [self.both(depth)]
        while self.takes("or"):
            parts.append(self.both(depth))
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def both(self, depth: int) -> Condition:
        parts = [self.one(depth)]
        while self.takes("and"):
            parts.append(self.one(depth))
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def one(self, depth: int) -> Condition:
        self.skip()
        if depth > MAX_DEPTH:
            raise self.error(f"conditions are more than {MAX_DEPTH} deep inside one another")
        if self.takes("not"):
            return Not(self.one(depth + 1))
        if self.text[self.at : self.at + 1] == "(":
            opened = self.at
            self.at += 1
            inner = self.expression(depth + 1)
            self.skip()
            if self.text[self.at : self.at + 1] != ")":
                raise self.error(f"expected `)` for the `(` of character {opened + 1}")
            self.at += 1
            return inner
        return self.condition()

    def condition(self) -> Condition:
        start = self.at
        name = _NAME.match(self.text, start)
        if name is None or name[0].lower() in _JOINS or self.text[name.end() : name.end() + 1] not in _SIGNS:
            raise self.error("expected a condition such as tag:work, `not` or `(`")
        make = _FIELDS.get(name[0].lower())
        if make is None:
            raise self.error(f"no such field; there are {', '.join(_FIELDS)}")
        self.at = name.end() + 1
        value_at = self.at
        value, is_quoted = self.value()
        threshold = self.threshold() if is_quoted and make is Like else None
        try:
            return make(value) if threshold is None else Like(value, threshold)
        except InvalidSelectorError as error:
            said = str(error)
            if name[0].lower() in ("since", "before", "until"):
                said = "no date; write 2026-03-01, 2026-03-01T18:30, or an age such as 12h, 3d or 2w"
            raise self.error(said, value_at) from None

    def value(self) -> tuple[str, bool]:
        """The text of a value, and whether it stood in quotes."""
        if self.text[self.at : self.at + 1] == '"':
            quoted = _QUOTED.match(self.text, self.at)
            if quoted is None:
                raise self.error('a quote that nothing closes; \\" is a quote inside of quotes')
            self.at = quoted.end()
            return _ESCAPE.sub(r"\1", quoted[1]), True
        word = _WORD.match(self.text, self.at)
        if word is None:
            raise self.error('expected a value right after the colon; put "words with blanks" in quotes')
        self.at = word.end()
        return word[0], False

    def threshold(self) -> float | None:
        number = _NUMBER.match(self.text, self.at)
        if number is None:
            return None
        try:
            value = float(number[1])
        except ValueError:
            raise self.error("expected a number after @") from None
        self.at = number.end()
        return value


def _print(node: Condition, depth: int) -> str:
    if isinstance(node, Or):
        text = " or ".join(_print(part, 1) for part in node.parts)
        return f"({text})" if depth > 0 else text
    if isinstance(node, And):
        text = " and ".join(_print(part, 2) for part in node.parts)
        return f"({text})" if depth > 1 else text
    if isinstance(node, Not):
        return f"not {_print(node.part, 3)}"
    return _print_leaf(node)


def _print_leaf(node: Condition) -> str:
    if isinstance(node, Ids):
        return f"id:{_quoted(','.join(node.ids))}"
    if isinstance(node, Session):
        return f"session:{_quoted(node.id)}"
    if isinstance(node, Tag):
        return f"tag:{_quoted(node.name)}"
    if isinstance(node, Matching):
        return f"match:{_quoted(node.text)}"
    if isinstance(node, Source):
        return f"source:{_quoted(node.path)}"
    if isinstance(node, OfKind):
        return f"kind:{node.kind}"
    if isinstance(node, Marked):
        return f"is:{node.mark}"
    if isinstance(node, Since):
        return f"since:{_moment(node.moment)}"
    if isinstance(node, Before):
        return f"before:{_moment(node.moment)}"
    if isinstance(node, Like):
        escaped = node.text.replace("\\", "\\\\").replace('"', '\\"')
        return f'like:"{escaped}"' + ("" if node.threshold is None else f"@{node.threshold!r}")
    raise TypeError(f"{type(node).__name__} has no text")


def _moment(moment: datetime) -> str:
    return moment.isoformat()


def _quoted(value: str) -> str:
    if _WORD.fullmatch(value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
