"""The columns of a table of memories, and which of them a width has room for."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mnemos.tui import output, when

if TYPE_CHECKING:
    from mnemos.memory.records import Memory
    from mnemos.store.browsing import Uses

_ENOUGH_FOR_TEXT = 40  # cells; columns are left out until the text has as many

Column = tuple[str, int, Callable[["Memory", "Uses | None"], str], bool]  # name, cells, text, to the right

COLUMNS: Sequence[Column] = (
    ("id", 8, lambda memory, _: memory.id[: output.SHORT_ID], False),
    ("age", 4, lambda memory, _: when.age_of(memory.created_at), True),
    ("kind", 8, lambda memory, _: memory.kind, False),
    ("session", 8, lambda memory, _: (memory.session_id or "-")[: output.SHORT_ID], False),
    ("tokens", 6, lambda memory, _: str(memory.tokens or "-"), True),
    ("bytes", 8, lambda memory, _: output.size(memory.text_bytes + memory.trace_bytes), True),
    ("fidelity", 8, lambda memory, _: memory.fidelity, False),
    ("uses", 5, lambda _, uses: f"{uses.count:,}" if uses else "-", True),
    ("used", 4, lambda _, uses: when.age_of(uses.last) if uses else "-", True),
    ("expires", 7, lambda memory, _: when.left_until(memory.expires_at) if memory.expires_at else "-", True),
    ("marks", 13, lambda memory, _: flags_of(memory), False),
)
# Left out in this order.
SPARE = ("session", "tokens", "kind", "expires", "used", "fidelity", "uses", "bytes", "marks", "id")


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
