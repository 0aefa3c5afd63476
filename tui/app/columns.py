"""The columns of a table of memories, and which of them a width has room for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mnemos.tui import output, when

if TYPE_CHECKING:
    from mnemos.memory.records import Memory, Tier
    from mnemos.store.browsing import Uses

_ENOUGH_FOR_TEXT = 40  # cells; columns are left out until the text has as many


@dataclass(frozen=True, slots=True)
class Seen:
    """What a row tells of."""

    memory: "Memory"
    uses: "Uses | None" = None
    tier: "Tier | None" = None


Column = tuple[str, int, Callable[[Seen], str], bool]  # name, cells, text, to the right

COLUMNS: Sequence[Column] = (
    ("id", 8, lambda seen: seen.memory.id[: output.SHORT_ID], False),
    ("age", 4, lambda seen: when.age_of(seen.memory.created_at), True),
    ("kind", 8, lambda seen: seen.memory.kind, False),
    ("session", 8, lambda seen: (seen.memory.session_id or "-")[: output.SHORT_ID], False),
    ("tokens", 6, lambda seen: str(seen.memory.tokens or "-"), True),
    ("bytes", 8, lambda seen: output.size(seen.memory.text_bytes + seen.memory.trace_bytes), True),
    ("fidelity", 8, lambda seen: seen.memory.fidelity, False),
    ("tier", 4, lambda seen: seen.tier or "-", False),
    ("uses", 5, lambda seen: f"{seen.uses.count:,}" if seen.uses else "-", True),
    ("used", 4, lambda seen: when.age_of(seen.uses.last) if seen.uses else "-", True),
    ("expires", 7, lambda seen: _expiry(seen.memory), True),
    ("marks", 13, lambda seen: flags_of(seen.memory), False),
)
# Left out in this order.
SPARE = ("session", "tokens", "kind", "expires", "used", "tier", "fidelity", "uses", "bytes", "marks", "id")


def _expiry(memory: "Memory") -> str:
    return when.left_until(memory.expires_at) if memory.expires_at else "-"


def flags_of(memory: "Memory") -> str:
    """`pinned`, `hidden`, or a status that is not `complete`."""
    held = [name for name in ("pinned", "hidden") if getattr(memory, name)]
    held += [] if memory.status == "complete" else [memory.status]
    return ",".join(held) or "-"


def fitting(width: int) -> list[Column]:
    """The columns that leave enough room for the text."""
    left = list(COLUMNS)
    for name in SPARE:
        if width - 2 - sum(column[1] + 2 for column in left) >= _ENOUGH_FOR_TEXT:
            break
        left = [column for column in left if column[0] != name]
    return left
