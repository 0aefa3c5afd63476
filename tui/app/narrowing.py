"""What the inspector's filter says."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from mnemos.errors import InvalidSelectorError

if TYPE_CHECKING:
    from mnemos.store.selectors import Condition
    from mnemos.store.words import Filter


@dataclass(frozen=True)
class Span:
    """The days that the timeline's cursor stands for, and the ordinals between which their memories lie."""

    since: datetime
    before: datetime
    low: int
    high: int


@dataclass(frozen=True)
class Narrowed:
    """A selector, or words that a memory contains; and some days."""

    where: "Condition | None" = None
    matching: str | None = None
    span: Span | None = None

    @classmethod
    def read(cls, text: str) -> "Narrowed":
        """As a selector where it can be read as one."""
        from mnemos.memory.choosing import has_like
        from mnemos.tui import selecting

        if not text.strip():
            return cls()
        try:
            condition = selecting.where(text) if text.strip() != "-" else None
        except InvalidSelectorError:
            condition = None
        if condition is None or has_like(condition):  # `like` reads the model, which may not be there
            return cls(matching=text.strip())
        return cls(where=condition)

    def during(self, span: Span | None) -> "Narrowed":
        return replace(self, span=span)

    @property
    def filter(self) -> "Filter":
        from mnemos.store.words import Filter

        return Filter(
            where=self.where,
            matching=self.matching,
            since=self.span.since if self.span else None,
            until=self.span.before if self.span else None,
        )

    @property
    def within(self) -> tuple[int, int] | None:
        return (self.span.low, self.span.high) if self.span else None
