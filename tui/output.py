"""stdout, which is data: JSON documents, tables on a terminal, tab-separated columns in a pipe."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mnemos.tui.console import visible

SHORT_ID = 8  # characters of an id on a screen
ENOUGH_FOR_LAST, MIN_FOR_LAST = 40, 10  # characters of a table's last column


def document(value: Mapping[str, Any]) -> None:
    """One JSON document; on a terminal in ASCII alone, since a memory's text must not drive the terminal."""
    print(json.dumps(value, ensure_ascii=sys.stdout.isatty(), indent=2 if sys.stdout.isatty() else None))


def lines(values: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line."""
    for value in values:
        print(json.dumps(value, ensure_ascii=sys.stdout.isatty()))


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: Sequence[str] = (),
    spare: Sequence[str] = (),
) -> None:
    """Rows of cells. Columns named in `right` hold numbers.

    On a narrow terminal, columns named in `spare` are left out, in their order; the last column is cut.
    """
    cells = [[visible(str(cell)) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in cells:
            print("\t".join(row))
        return
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, shown = Console(), Table(box=None, pad_edge=False, header_style="bold")
    widths = {
        name: max(map(cell_len, [name, *(row[at] for row in cells)])) for at, name in enumerate(columns)
    }
    last = columns[-1]
    left_out = list(reversed(spare))

    def room() -> int:
        return console.width - sum(width + 2 for name, width in widths.items() if name != last)

    while left_out and room() < ENOUGH_FOR_LAST:
        del widths[left_out.pop()]
    widths[last] = min(widths[last], max(room(), MIN_FOR_LAST))
    for name, width in widths.items():
        shown.add_column(
            name, justify="right" if name in right else "left", width=width, no_wrap=True, overflow="ellipsis"
        )
    for row in cells:
        shown.add_row(*(Text(cell) for name, cell in zip(columns, row, strict=True) if name in widths))
    console.print(shown)


def fields(values: Mapping[str, object]) -> None:
    """Names and values, one a line."""
    for name, value in values.items():
        text = visible(_said(value), keep="\n" if sys.stdout.isatty() else "")
        print(f"{name}\t{text}" if not sys.stdout.isatty() else f"{name:<12} {text}")


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def text(value: str, *, end: str = "") -> None:
    """Words as they come; on a terminal, with control characters escaped."""
    sys.stdout.write((visible(value, keep="\n\t") if sys.stdout.isatty() else value) + end)
    sys.stdout.flush()


def short_id(value: str) -> str:
    """The id as columns show it: short on a terminal, whole in a pipe."""
    return value[:SHORT_ID] if sys.stdout.isatty() else value


def amount(count: int) -> str:
    """Bytes as columns show them: in a unit that fits on a terminal, as a plain number in a pipe."""
    return size(count) if sys.stdout.isatty() else str(count)


def size(count: int) -> str:
    """Bytes in a unit that fits: `812 B`, `3.4 MB`."""
    value, unit, larger = float(count), "B", ["TB", "GB", "MB", "kB"]
    while value >= 1_000 and larger:
        value, unit = value / 1_000, larger.pop()
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
