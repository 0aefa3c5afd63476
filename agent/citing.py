"""Which recalled memories a reply cites: those whose own words show in it."""

import re
from collections.abc import Sequence

from mnemos.memory.records import RecalledMemory

_WORD = re.compile(r"\w+", re.UNICODE)
_SHORTEST = 4  # letters; shorter words are mostly grammar. Numbers count at any length


def cite(memories: Sequence[RecalledMemory], message: str, reply: str) -> tuple[RecalledMemory, ...]:
    """Mark each memory that brought a telling word into the reply: one that the message did not already
    have.
    """
    new = _telling(reply) - _telling(message)
    return tuple(
        recalled.model_copy(update={"cited": bool(new & _telling(_words_of(recalled)))})
        for recalled in memories
    )


def _words_of(recalled: RecalledMemory) -> str:
    return f"{recalled.memory.text} {recalled.memory.reply or ''}"


def _telling(text: str) -> set[str]:
    words = {word.casefold() for word in _WORD.findall(text)}
    return {word for word in words if len(word) >= _SHORTEST or word.isdigit()}
