"""A Markdown table as lines: columns as wide as their words where there is room, else the widest give way."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from textual.content import Content

if TYPE_CHECKING:
    from markdown_it.tree import SyntaxTreeNode

_GAP = "  "
_LEAST_CELLS = 3  # of a column


def table(node: "SyntaxTreeNode", width: int, inline: Callable[["SyntaxTreeNode"], Content]) -> list[Content]:
    """The heading, a rule, and the rows. A table of too many columns for the width is cut at its edge."""
    rows = [
        [(inline(cell.children[0]), str(cell.attrs.get("style", ""))) for cell in row.children]
        for part in node.children
        for row in part.children
    ]
    sizes = fit([max(row[at][0].cell_length for row in rows) for at in range(len(rows[0]))], width)
    lines: list[Content] = []
    for number, row in enumerate(rows):
        cells = [content.wrap(size) for (content, _), size in zip(row, sizes, strict=True)]
        for at in range(max(map(len, cells))):
            parts = [
                _aligned(cell[at] if at < len(cell) else Content(""), size, style)
                for cell, size, (_, style) in zip(cells, sizes, row, strict=True)
            ]
            line = Content(_GAP).join(parts).rstrip()
            lines.append((line.stylize_before("bold") if number == 0 else line).truncate(width))
        if number == 0:
            rule = _GAP.join("─" * size for size in sizes)
            lines.append(Content.styled(rule[:width], "$text-muted"))
    return lines


def fit(sizes: list[int], width: int) -> list[int]:
    """Cells for each column: together at most the width, as far as each can keep a few."""
    sizes = [max(size, _LEAST_CELLS) for size in sizes]
    spare = width - len(_GAP) * (len(sizes) - 1)
    while sum(sizes) > spare and max(sizes) > _LEAST_CELLS:
        widest = max(sizes)
        second = max((size for size in sizes if size < widest), default=_LEAST_CELLS)
        columns = [at for at, size in enumerate(sizes) if size == widest]
        cut = min(widest - second, -(-(sum(sizes) - spare) // len(columns)))
        for at in columns:
            sizes[at] -= max(cut, 1)
    return sizes


def _aligned(content: Content, size: int, style: str) -> Content:
    room = max(size - content.cell_length, 0)
    left = room if "right" in style else room // 2 if "center" in style else 0
    return content.pad_left(left).pad_right(room - left)
