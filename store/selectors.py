"""Which memories: small conditions that are joined with `&`, `|` and `~`.

    Tag("work") & ~(Session("3f2a") | Matching("Clara")) & Before(datetime(2026, 1, 1, tzinfo=UTC))

Nothing here touches a bank. `selector_sql` turns a condition into SQL, `mnemos.memory.where` into text and
back.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, get_args

from mnemos.errors import InvalidSelectorError
from mnemos.store.records import Kind

Mark = Literal["pinned", "hidden"]
KINDS: tuple[str, ...] = get_args(Kind)
MARKS: tuple[str, ...] = get_args(Mark)
MAX_CONDITIONS = 300  # of one selector
MAX_DEPTH = 60  # of conditions inside one another; SQLite's parser has a limit too


class Condition:
    """What a memory must be like. Two of equal form are equal."""

    __slots__ = ()

    def __and__(self, other: "Condition") -> "And":
        return And((self, other))

    def __or__(self, other: "Condition") -> "Or":
        return Or((self, other))

    def __invert__(self) -> "Not":
        return Not(self)


@dataclass(frozen=True, slots=True)
class Ids(Condition):
    """One of these memories, each by its id or an unambiguous prefix of it."""

    ids: tuple[str, ...]

    def __post_init__(self) -> None:
        given = (self.ids,) if isinstance(self.ids, str) else tuple(self.ids)
        object.__setattr__(self, "ids", given)
        for each in given:
            _check_words(each)
            if "," in each:
                raise InvalidSelectorError("An id has no comma; give ids one by one.")
        if not given:
            raise _empty()


@dataclass(frozen=True, slots=True)
class Among(Condition):
    """One of these memories by its whole id; there may be none."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Session(Condition):
    """Of this session, by its id or a prefix."""

    id: str

    def __post_init__(self) -> None:
        _check_words(self.id)


@dataclass(frozen=True, slots=True)
class Since(Condition):
    """Remembered at that moment or later."""

    moment: datetime

    def __post_init__(self) -> None:
        object.__setattr__(self, "moment", _in_utc(self.moment))


@dataclass(frozen=True, slots=True)
class Before(Condition):
    """Remembered before that moment."""

    moment: datetime

    def __post_init__(self) -> None:
        object.__setattr__(self, "moment", _in_utc(self.moment))


@dataclass(frozen=True, slots=True)
class Tag(Condition):
    """Has the tag."""

    name: str

    def __post_init__(self) -> None:
        _check_words(self.name)


@dataclass(frozen=True, slots=True)
class Matching(Condition):
    """Holds the text, in any case, in its words, reply, title or source."""

    text: str

    def __post_init__(self) -> None:
        _check_words(self.text)


@dataclass(frozen=True, slots=True)
class Source(Condition):
    """Came from that file."""

    path: str

    def __post_init__(self) -> None:
        _check_words(self.path)


@dataclass(frozen=True, slots=True)
class OfKind(Condition):
    kind: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidSelectorError(f"A kind is one of {', '.join(KINDS)}.")


@dataclass(frozen=True, slots=True)
class Marked(Condition):
    """Pinned, or hidden."""

    mark: str

    def __post_init__(self) -> None:
        if self.mark not in MARKS:
            raise InvalidSelectorError(f"A mark is one of {', '.join(MARKS)}.")


@dataclass(frozen=True, slots=True)
class Like(Condition):
    """Means something like the text, as the model sees it: scores the threshold or more.

    Without a threshold, the one of the model's calibration.
    """

    text: str
    threshold: float | None = None

    def __post_init__(self) -> None:
        _check_words(self.text)
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise InvalidSelectorError("A threshold is a number.")


@dataclass(frozen=True, slots=True)
class And(Condition):
    """All of them hold."""

    parts: tuple[Condition, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", _flat(And, self.parts))


@dataclass(frozen=True, slots=True)
class Or(Condition):
    """At least one of them holds."""

    parts: tuple[Condition, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", _flat(Or, self.parts))


@dataclass(frozen=True, slots=True)
class Not(Condition):
    part: Condition


def between(since: datetime, before: datetime) -> And:
    """From one moment until right before another."""
    return Since(since) & Before(before)


def conditions(root: Condition) -> Iterator[Condition]:
    """Every condition that is not made of others. InvalidSelectorError for too many, or too deep."""
    held = [(root, 1)]
    count = 0
    while held:
        node, depth = held.pop()
        count += not isinstance(node, And | Or | Not)
        if count > MAX_CONDITIONS or depth > MAX_DEPTH:
            raise InvalidSelectorError(
                f"The selector is too large: at most {MAX_CONDITIONS} conditions, {MAX_DEPTH} inside one "
                "another. Give ids, or forget in several steps."
            )
        if isinstance(node, And | Or):
            held += [(part, depth + 1) for part in reversed(node.parts)]
        elif isinstance(node, Not):
            held.append((node.part, depth + 1))
        else:
            yield node


def replaced(root: Condition, change: Callable[[Condition], Condition]) -> Condition:
    """The same, with every condition that is not made of others changed."""
    if isinstance(root, And):
        return And(tuple(replaced(part, change) for part in root.parts))
    if isinstance(root, Or):
        return Or(tuple(replaced(part, change) for part in root.parts))
    if isinstance(root, Not):
        return Not(replaced(root.part, change))
    return change(root)


def _flat(kind: type[And] | type[Or], parts: tuple[Condition, ...]) -> tuple[Condition, ...]:
    flat: list[Condition] = []
    for part in parts:
        flat += part.parts if isinstance(part, kind) else (part,)
    if len(flat) < 2:
        raise InvalidSelectorError("`and` and `or` join two conditions or more.")
    return tuple(flat)


def _in_utc(moment: datetime) -> datetime:
    """A moment without a time zone is taken as UTC."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _check_words(value: str) -> None:
    if not value:
        raise _empty()
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidSelectorError("A condition of the selector is not valid Unicode.") from None


def _empty() -> InvalidSelectorError:
    return InvalidSelectorError("A condition of the selector is empty; leave it out or fill it in.")
