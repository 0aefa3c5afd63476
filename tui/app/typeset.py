"""The lines of a Markdown text that may still grow: what is finished in it is laid out once."""

from textual.content import Content

from mnemos.tui.app.markdown_lines import Lines, Setter, blocks_of


class Typeset:
    """A text and its lines for one width at a time. Lines of the text end in a line feed."""

    def __init__(self, text: str = "") -> None:
        self.lines: Lines = []
        self._text = text
        self.is_growing = False
        self._is_laid = False
        self._width = 0
        self._setter = Setter()
        self._settled = (0, 0)  # characters and lines of the blocks that no longer change

    @property
    def text(self) -> str:
        return self._text

    def set(self, text: str) -> None:
        """All of a text. It is laid out as a whole: a late line of it can name an early link."""
        self._text = text
        self._start_anew(is_growing=False)

    def grow(self, piece: str) -> None:
        """More of a text. `set` ends it."""
        if not self.is_growing:
            self._start_anew(is_growing=True)
        self._text += piece
        self._is_laid = False

    def lay(self, width: int) -> int:
        """Bring the lines up to date; the first that is new, or how many there are where none is."""
        if width != self._width:
            self._width = width
            self._start_anew(is_growing=self.is_growing)
        if self._is_laid:
            return len(self.lines)
        chars, first = self._settled
        rest, lines = self._text[chars:], self.lines
        del lines[first:]
        blocks = blocks_of(rest)
        starts = [0]
        for row in rest.split("\n"):
            starts.append(starts[-1] + len(row) + 1)
        for at, block in enumerate(blocks):
            if lines:
                lines.append(Content(""))
            if at + 1 < len(blocks):
                lines += Setter().block(block, width)
                following = blocks[at + 1].map
                assert following is not None
                self._settled = (chars + starts[following[0]], len(lines))
                self._setter = Setter(is_growing=self.is_growing)
            else:
                lines += self._setter.block(block, width)
        self._is_laid = True
        return first

    def _start_anew(self, *, is_growing: bool) -> None:
        self.lines.clear()
        self._settled = (0, 0)
        self.is_growing, self._is_laid = is_growing, False
        self._setter = Setter(is_growing=is_growing)
