"""Markdown blocks as lines of styled text that fit a width."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

from textual.content import Content, Span

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.tree import SyntaxTreeNode

Lines = list[Content]  # each is one line

_CHUNK = 40  # lines of code that are highlighted at a time while the block grows
_LEAST_CELLS = 4  # for the words of what stands far to the right
_HEADINGS = {"h1": "bold underline $text-primary", "h2": "bold $text-primary"}
_INLINE = {
    "em": "italic",
    "strong": "bold",
    "s": "strike",
    "code_inline": "$text-accent on $panel",
    "link": "underline $text-secondary",
    "image": "italic $text-secondary",
}
_BULLETS = "•◦▪"
_QUIET = "$text-muted"
_BLANK = Content("")


@cache
def _parser() -> "MarkdownIt":
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable(["table", "strikethrough"])


def blocks_of(text: str) -> "Sequence[SyntaxTreeNode]":
    """The blocks at the top of a Markdown text whose lines end in a line feed."""
    from markdown_it.tree import SyntaxTreeNode

    return [block for block in SyntaxTreeNode(_parser().parse(text)).children if block.map is not None]


class Setter:
    """Sets blocks. One that is kept while a text grows sets each piece of a list or of code only once."""

    def __init__(self, *, is_growing: bool = False) -> None:
        self._is_growing = is_growing
        self._memo: dict[tuple[object, ...], Lines] = {}

    def block(self, node: "SyntaxTreeNode", width: int, depth: int = 0) -> Lines:
        """The lines of one block."""
        width = max(width, _LEAST_CELLS)
        match node.type:
            case "heading":
                style = _HEADINGS.get(node.tag, "bold")
                return _inline(node.children[0]).stylize_before(style).wrap(width)
            case "paragraph":
                return _inline(node.children[0]).wrap(width)
            case "bullet_list" | "ordered_list":
                return self._list(node, width, depth)
            case "blockquote":
                bar = Content.styled("▌ ", _QUIET)
                return [bar + line for line in self._blocks(node.children, width - 2, depth)]
            case "fence" | "code_block":
                return self._code(node, width)
            case "hr":
                return [Content.styled("─" * width, _QUIET)]
            case "table":
                from mnemos.tui.app.markdown_tables import table

                return table(node, width, _inline)
            case _:  # HTML, as it is written
                return Content(node.content.rstrip("\n")).wrap(width)

    def _blocks(self, nodes: "Sequence[SyntaxTreeNode]", width: int, depth: int, gap: bool = True) -> Lines:
        lines: Lines = []
        for node in nodes:
            if lines and gap:
                lines.append(_BLANK)
            lines += self.block(node, width, depth)
        return lines

    def _list(self, node: "SyntaxTreeNode", width: int, depth: int) -> Lines:
        items = node.children
        first = int(node.attrs.get("start", 1)) if node.type == "ordered_list" else None
        is_loose = any(
            child.type == "paragraph" and not child.hidden for item in items for child in item.children
        )
        cells = 2 if first is None else len(f"{first + len(items) - 1}. ")
        lines: Lines = []
        for at, item in enumerate(items):
            mark = _BULLETS[depth % 3] if first is None else f"{first + at}."
            if lines and is_loose:
                lines.append(_BLANK)

            def set_item(item: "SyntaxTreeNode" = item, mark: str = mark) -> Lines:
                inner = self._blocks(item.children, width - cells, depth + 1, is_loose) or [_BLANK]
                head = Content.styled(f"{mark:>{cells - 1}} ", "$text-accent")
                return [(head if row == 0 else " " * cells) + line for row, line in enumerate(inner)]

            is_last = at == len(items) - 1
            key = (mark, cells, is_loose, width, depth, _source(item))
            lines += set_item() if is_last else self._once(key, set_item)
        return lines

    def _code(self, node: "SyntaxTreeNode", width: int) -> Lines:
        """On a ground of its own, with the language's name above."""
        language = node.info.split()[0] if node.info.strip() else ""
        text = node.content.removesuffix("\n")
        rows = text.split("\n")
        size = _CHUNK if self._is_growing else max(len(rows), 1)
        name = Content.styled(f"{language[: width - 2]} ", _QUIET)
        lines = [name.pad_left(width - name.cell_length)]
        for at in range(0, len(rows), size):
            piece = "\n".join(rows[at : at + size])

            def set_piece(piece: str = piece) -> Lines:
                return [
                    folded.pad_left(1)
                    for row in _highlighted(piece, language).split("\n", allow_blank=True)
                    for folded in row.expand_tabs(4).fold(max(width - 2, 2))
                ]

            is_whole = at + size < len(rows)
            lines += self._once((language, width, at, piece), set_piece) if is_whole else set_piece()
        lines.append(_BLANK)
        return [
            line.pad_right(max(width - line.cell_length, 0)).stylize_before("on $surface") for line in lines
        ]

    def _once(self, key: tuple[object, ...], make: Callable[[], Lines]) -> Lines:
        if not self._is_growing:
            return make()
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]


def _source(node: "SyntaxTreeNode") -> str:
    """What a node says, as far as it shows."""
    if not node.children:
        return f"{node.type}{node.info}{node.hidden}{node.content}"
    return f"{node.type}{node.tag}{node.hidden}({''.join(map(_source, node.children))})"


def _inline(node: "SyntaxTreeNode") -> Content:
    """The words of a paragraph, a heading or a cell."""
    words: list[str] = []
    spans: list[Span] = []
    _collect(node, words, spans, 0)
    return Content("".join(words), spans)


def _collect(node: "SyntaxTreeNode", words: list[str], spans: list[Span], at: int) -> int:
    for child in node.children:
        start = at
        match child.type:
            case "softbreak":
                words.append(" ")
                at += 1
            case "hardbreak":
                words.append("\n")
                at += 1
            case _ if child.children:
                at = _collect(child, words, spans, at)
            case _:
                words.append(child.content)
                at += len(child.content)
        if (style := _INLINE.get(child.type)) is not None and at > start:
            spans.append(Span(start, at, style))
    return at


def _highlighted(code: str, language: str) -> Content:
    if not language:
        return Content(code)
    from textual.highlight import highlight

    return highlight(code, language=language)
