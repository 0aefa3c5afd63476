"""Cuts files into chunks of a few hundred characters, along the structure that their authors gave them."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mnemos.errors import InvalidTextError, NotFoundError

TARGET_CHARS = 700  # neighbouring paragraphs are joined up to this length
MAX_CHARS = 900  # no chunk is longer
MAX_FILE_BYTES = 16 * 1024 * 1024
MAX_HEADING_CHARS = 80  # a longer heading is text
TITLE_SEPARATOR = " > "

MARKDOWN_SUFFIXES = frozenset({".md", ".markdown", ".mdown", ".mkd"})
_CODE = (
    "py pyi js jsx mjs cjs ts tsx java kt kts scala swift go rs c h cc cpp cxx hpp hh cs rb php lua pl pm sh "
    "bash zsh sql r jl ex exs erl hs ml clj dart zig cu proto"
)
CODE_SUFFIXES = frozenset(f".{name}" for name in _CODE.split())
SKIPPED_DIRECTORIES = frozenset({"__pycache__", "node_modules"})

_ATX_HEADING = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.*?)(?:[ \t]+#+)?[ \t]*$")
_SETEXT_UNDERLINE = re.compile(r"^ {0,3}(=+|-{2,})[ \t]*$")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
_DEFINITION = re.compile(
    r"^(?P<indent>[ \t]*)"
    r"(?:(?:export|default|public|private|protected|internal|static|abstract|final|async|unsafe|inline|virtual|"
    r"pub(?:\([^)]*\))?|extern|override|sealed|open|data|local)\s+)*"
    r"(?:def|class|function|func|fn|fun|interface|struct|enum|impl|trait|module|namespace|object|type|message|"
    r"macro|defmodule|defp|CREATE|create)\b"
)
_LEADS_A_DEFINITION = re.compile(r"^\s*(?:@|#|//|/\*|\*|--|///)")
_SENTENCE_END = re.compile(r"(?<=[.!?\u3002\uff01\uff1f])\s+")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A stretch of one file. Lines count from 1; both ends are included."""

    text: str
    title: str | None  # headings or definitions that the text stands under, outermost first
    start_line: int
    end_line: int


@dataclass(frozen=True, slots=True)
class _Block:
    """Lines that belong together: a paragraph, a list, a fenced block, a definition."""

    lines: Sequence[str]
    start_line: int
    title: str | None

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def end_line(self) -> int:
        return self.start_line + len(self.lines) - 1


def iter_files(path: Path) -> Iterator[Path]:
    """The file itself, or a directory's files in a fixed order, without hidden ones, caches and links.

    Raises NotFoundError when there is nothing at `path`.
    """
    if not path.exists():
        raise NotFoundError(f"no file or directory at {path}")
    if not path.is_dir():
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and name not in SKIPPED_DIRECTORIES
        )
        for name in sorted(names):
            file = Path(folder, name)
            if not name.startswith(".") and file.is_file() and not file.is_symlink():
                yield file


def chunk_file(path: Path) -> list[Chunk]:
    """The chunks of a text, Markdown or code file. Raises InvalidTextError, or OSError from reading it."""
    return chunk_text(read_text(path), suffix=path.suffix)


def read_text(path: Path) -> str:
    """A text file's content. Raises InvalidTextError for a binary, over 16 MiB, or what is not UTF-8."""
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise InvalidTextError(f"{path} is over {MAX_FILE_BYTES >> 20} MiB; split it first")
    if b"\0" in data:
        raise InvalidTextError(f"{path} is not a text file (it holds NUL bytes)")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidTextError(f"{path} is not UTF-8 (byte {error.start}); convert it first") from None


def chunk_text(text: str, *, suffix: str = "") -> list[Chunk]:
    """Chunks of at most `MAX_CHARS` characters that hold, in order, all of the text but blank lines.

    `suffix` (".md", ".py", ...) says how the text is structured. A Markdown heading goes into the titles of
    the chunks below it, and is itself the text of a chunk where nothing stands below it.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    suffix = suffix.lower()
    if suffix in MARKDOWN_SUFFIXES:
        blocks = _markdown_blocks(lines)
    elif suffix in CODE_SUFFIXES:
        blocks = _code_blocks(lines, start_line=1, title=None)
    else:
        blocks = _paragraphs(lines, start_line=1, title=None)
    return _pack(blocks)


def _paragraphs(lines: Sequence[str], *, start_line: int, title: str | None) -> Iterator[_Block]:
    first = 0
    for at in range(len(lines) + 1):
        if at == len(lines) or not lines[at].strip():
            if first < at:
                yield _Block(lines[first:at], start_line + first, title)
            first = at + 1


def _markdown_blocks(lines: Sequence[str]) -> Iterator[_Block]:
    path: list[tuple[int, str]] = []  # (level, heading)
    bare: tuple[int, int] | None = None  # level and line of a heading that nothing stands below yet
    body_start = 0

    def title_of(levels: Sequence[tuple[int, str]]) -> str | None:
        return TITLE_SEPARATOR.join(heading for _, heading in levels) or None

    def bare_heading() -> Iterator[_Block]:
        if bare is not None:
            yield _Block([path[-1][1]], bare[1] + 1, title_of(path[:-1]))

    for level, heading, first, end in [*_headings(lines), (0, "", len(lines), len(lines))]:
        body = lines[body_start:first]
        if any(line.strip() for line in body):
            yield from _markdown_body(body, start_line=body_start + 1, title=title_of(path))
            bare = None
        elif bare is not None and level <= bare[0]:
            yield from bare_heading()
        if level:
            path = [(above, name) for above, name in path if above < level] + [(level, heading)]
            bare = (level, first)
        body_start = end


def _headings(lines: Sequence[str]) -> Iterator[tuple[int, str, int, int]]:
    """(level, heading, its first line, the line after it) of each heading outside fences and front matter."""
    fence: str | None = None
    at = _front_matter_end(lines)
    while at < len(lines):
        line = lines[at]
        if mark := _FENCE.match(line):
            if fence is None:
                fence = mark[1]
            elif mark[1].startswith(fence) and not line.strip().strip(fence[0]):
                fence = None
        elif fence is None:
            found = _ATX_HEADING.match(line)
            if found and 0 < len(found[2].strip()) <= MAX_HEADING_CHARS:
                yield len(found[1]), found[2].strip(), at, at + 1
            elif _is_setext(lines, at):
                yield 1 if lines[at + 1].strip()[0] == "=" else 2, line.strip(), at, at + 2
                at += 1
        at += 1


def _is_setext(lines: Sequence[str], at: int) -> bool:
    line = lines[at]
    starts_a_paragraph = at == 0 or not lines[at - 1].strip()
    is_plain = bool(line.strip()) and line[0] not in " \t>-*+|#=" and len(line.strip()) <= MAX_HEADING_CHARS
    return (
        starts_a_paragraph
        and is_plain
        and at + 1 < len(lines)
        and bool(_SETEXT_UNDERLINE.match(lines[at + 1]))
    )


def _front_matter_end(lines: Sequence[str]) -> int:
    if lines[0].rstrip() == "---":
        for at in range(1, len(lines)):
            if lines[at].rstrip() == "---":
                return at + 1
    return 0


def _markdown_body(lines: Sequence[str], *, start_line: int, title: str | None) -> Iterator[_Block]:
    """Paragraphs, with each fenced block kept whole although it holds blank lines."""
    first, at = 0, 0
    while at < len(lines):
        mark = _FENCE.match(lines[at])
        if mark is None:
            at += 1
            continue
        yield from _paragraphs(lines[first:at], start_line=start_line + first, title=title)
        first = at
        at += 1
        while at < len(lines) and not lines[at].strip().startswith(mark[1]):
            at += 1
        at = min(at + 1, len(lines))
        yield _Block(lines[first:at], start_line + first, title)
        first = at
    yield from _paragraphs(lines[first:], start_line=start_line + first, title=title)


def _code_blocks(lines: Sequence[str], *, start_line: int, title: str | None) -> Iterator[_Block]:
    """Outermost definitions with the comments right above them; large ones are cut at inner definitions."""
    found = [(at, match["indent"]) for at, line in enumerate(lines) if (match := _DEFINITION.match(line))]
    shallowest = min((len(indent) for _, indent in found), default=0)
    starts = [at for at, indent in found if len(indent) == shallowest]
    cuts = [_with_lead(lines, at) for at in starts]
    yield from _paragraphs(lines[: cuts[0] if cuts else len(lines)], start_line=start_line, title=title)
    for number, (cut, start) in enumerate(zip(cuts, starts, strict=True)):
        end = cuts[number + 1] if number + 1 < len(cuts) else len(lines)
        name = lines[start].strip().rstrip(":{( ")[:MAX_HEADING_CHARS]
        own_title = f"{title}{TITLE_SEPARATOR}{name}" if title else name
        block = _Block(lines[cut:end], start_line + cut, own_title)
        inner = start + 1 - cut
        if len(block.text) <= MAX_CHARS or len(own_title) > 3 * MAX_HEADING_CHARS:
            yield block
        else:
            yield _Block(block.lines[:inner], block.start_line, own_title)
            yield from _code_blocks(block.lines[inner:], start_line=block.start_line + inner, title=own_title)


def _with_lead(lines: Sequence[str], at: int) -> int:
    """The first of the comment and decorator lines right above line `at`."""
    while at > 0 and _LEADS_A_DEFINITION.match(lines[at - 1]):
        at -= 1
    return at


def _pack(blocks: Iterator[_Block]) -> list[Chunk]:
    """Joins neighbours under one title up to the target length; cuts what is too long."""
    chunks: list[Chunk] = []
    may_grow = False
    for block in blocks:
        whole = Chunk(block.text.strip("\n").rstrip(), block.title, block.start_line, block.end_line)
        if not whole.text.strip():
            continue
        if len(whole.text) > MAX_CHARS:
            chunks.extend(_cut(block))
            may_grow = False
            continue
        last = chunks[-1] if chunks else None
        if (
            last
            and may_grow
            and last.title == whole.title
            and len(last.text) + 2 + len(whole.text) <= TARGET_CHARS
        ):
            gap = "\n" * max(1, min(2, whole.start_line - last.end_line))
            chunks[-1] = replace(last, text=f"{last.text}{gap}{whole.text}", end_line=whole.end_line)
        else:
            chunks.append(whole)
        may_grow = True
    return chunks


def _cut(block: _Block) -> Iterator[Chunk]:
    """Pieces of a long block: cut at line ends where possible, else at sentences, spaces, or anywhere."""
    held: list[str] = []
    size, first = 0, block.start_line
    for number, line in enumerate(block.lines, block.start_line):
        if held and size + len(line) > TARGET_CHARS:
            yield from _chunk_of(held, block.title, first, number - 1)
            held, size = [], 0
        if len(line) > MAX_CHARS:
            for piece in _cut_line(line):
                yield from _chunk_of([piece], block.title, number, number)
            continue
        if not held:
            first = number
        held.append(line)
        size += len(line) + 1
    yield from _chunk_of(held, block.title, first, block.end_line)


def _chunk_of(lines: Sequence[str], title: str | None, first: int, last: int) -> Iterator[Chunk]:
    text = "\n".join(lines).strip("\n").rstrip()
    if text.strip():
        yield Chunk(text, title, first, last)


def _cut_line(line: str) -> Iterator[str]:
    piece = ""
    for sentence in _SENTENCE_END.split(line):
        if piece and len(piece) + 1 + len(sentence) > TARGET_CHARS:
            yield piece
            piece = ""
        while len(sentence) > MAX_CHARS:
            space = max(sentence.rfind(" ", 1, TARGET_CHARS), sentence.rfind("\t", 1, TARGET_CHARS))
            end = space if space > 0 else TARGET_CHARS
            yield sentence[:end].rstrip()
            sentence = sentence[end:].lstrip()
        piece = f"{piece} {sentence}" if piece else sentence
    if piece:
        yield piece
