"""Chunks hold all of a file's words in order, within bounds, along its structure."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnemos.errors import InvalidTextError, NotFoundError
from mnemos.memory.chunk import MAX_CHARS, MAX_FILE_BYTES, chunk_file, chunk_text, iter_files, read_text

MARKS = [
    *("", "", "# One", "## Two ##", "Setext", "===", "---", "```", "```python", "~~~~", "- item", "    code"),
    *(
        "def f(x):",
        "    return x",
        "class A:",
        "    async def g(self):",
        "@wraps",
        "# why",
        "}",
        "pub fn go() {",
    ),
]
LINES = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"), max_size=60),
        st.sampled_from(MARKS),
        st.integers(1, 3000).map(lambda length: ("word " * length)[:length]),
        st.integers(901, 3000).map(lambda length: "x" * length),
    ),
    max_size=60,
)
SUFFIXES = st.sampled_from(["", ".txt", ".py", ".rs", ".sql"])


def squeeze(text: str) -> str:
    return "".join(text.split())


@settings(max_examples=200, deadline=None)
@given(LINES, SUFFIXES, st.sampled_from(["\n", "\r\n", "\r"]))
def test_chunks_hold_every_word_in_order(lines: list[str], suffix: str, newline: str) -> None:
    chunks = chunk_text(newline.join(lines), suffix=suffix)
    assert squeeze("".join(chunk.text for chunk in chunks)) == squeeze("".join(lines))
    for chunk in chunks:
        assert 0 < len(chunk.text) <= MAX_CHARS
        assert chunk.text.strip()
        assert 1 <= chunk.start_line <= chunk.end_line <= len(lines)
    assert [c.start_line for c in chunks] == sorted(c.start_line for c in chunks)


@settings(max_examples=200, deadline=None)
@given(LINES)
def test_markdown_words_stand_in_a_text_or_in_a_title(lines: list[str]) -> None:
    chunks = chunk_text("\n".join(lines), suffix=".md")
    held = squeeze("".join(f"{chunk.title or ''}{chunk.text}" for chunk in chunks))
    for line in lines:
        words = line.strip().strip("#").strip()
        if words and len(words) < 100 and set(words) - set("=-#"):
            assert squeeze(words) in held
    assert all(0 < len(chunk.text) <= MAX_CHARS for chunk in chunks)


@settings(max_examples=100, deadline=None)
@given(LINES, SUFFIXES)
def test_a_chunk_lies_on_the_lines_it_names(lines: list[str], suffix: str) -> None:
    for chunk in chunk_text("\n".join(lines), suffix=suffix):
        named = "\n".join(lines[chunk.start_line - 1 : chunk.end_line])
        assert squeeze(chunk.text) in squeeze(named)


def test_markdown_headings_become_titles() -> None:
    text = "# Handbook\n\n## The lamp\n\nTrim it at dusk.\n\n## The boat\n\nIt is blue.\n\n## Notes\n"
    chunks = chunk_text(text, suffix=".md")
    assert [(c.title, c.text, c.start_line) for c in chunks] == [
        ("Handbook > The lamp", "Trim it at dusk.", 5),
        ("Handbook > The boat", "It is blue.", 9),
        ("Handbook", "Notes", 11),
    ]


def test_underlined_headings_and_front_matter() -> None:
    text = "---\ntitle: x\n---\n\nHandbook\n========\n\nText one.\n\nPart\n----\n\nText two.\n"
    assert [(c.title, c.text) for c in chunk_text(text, suffix=".md")] == [
        (None, "---\ntitle: x\n---"),
        ("Handbook", "Text one."),
        ("Handbook > Part", "Text two."),
    ]


def test_a_hash_inside_a_fence_is_no_heading() -> None:
    text = "# Real\n\n```sh\n# not one\n\nls\n```\n\nafter\n"
    chunks = chunk_text(text, suffix=".md")
    assert [c.title for c in chunks] == ["Real"]
    assert "# not one\n\nls" in chunks[0].text


def test_short_paragraphs_are_joined_and_long_ones_cut_at_sentences() -> None:
    assert len(chunk_text("One.\n\nTwo.\n\nThree.")) == 1
    sentence = "The keeper walks the gallery at every change of the watch. "
    chunks = chunk_text(sentence * 60)
    assert len(chunks) > 3
    assert all(chunk.text.endswith("watch.") for chunk in chunks)


def test_python_is_cut_at_definitions() -> None:
    body = "".join(f"    step_{n} = compute({n}) + offset\n" for n in range(14))
    source = (
        '"""Module."""\n\nimport os\n\n'
        f"# says why\n@cache\ndef first(x):\n{body}\n\n"
        "class Second:\n    def inner(self):\n        return 1\n"
    )
    chunks = chunk_text(source, suffix=".py")
    assert [c.title for c in chunks] == [None, "def first(x)", "class Second"]
    assert chunks[1].text.startswith("# says why\n@cache\ndef first(x):")


def test_a_large_class_is_cut_at_its_methods() -> None:
    method = "    def m{n}(self):\n" + "        value = self.read()\n" * 12 + "\n"
    source = "class Large:\n    size = 1\n\n" + "".join(method.format(n=n) for n in range(4))
    titles = [c.title for c in chunk_text(source, suffix=".py")]
    assert titles == ["class Large", *(f"class Large > def m{n}(self)" for n in range(4))]


def test_a_huge_single_line_is_cut() -> None:
    chunks = chunk_text("x" * 100_000)
    assert sum(len(c.text) for c in chunks) == 100_000
    assert {(c.start_line, c.end_line) for c in chunks} == {(1, 1)}


@pytest.mark.parametrize("content", [b"", b"\n\n  \n\t\n", b"\xef\xbb\xbf"])
def test_nothing_in_a_file_gives_no_chunks(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "empty.md"
    path.write_bytes(content)
    assert chunk_file(path) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"\x7fELF\0\0", "NUL"), (b"caf\xe9 au lait", "UTF-8"), ("né".encode("utf-16"), "NUL")],
)
def test_what_is_not_text_is_refused_without_showing_it(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "odd.txt"
    path.write_bytes(content)
    with pytest.raises(InvalidTextError, match=reason) as caught:
        chunk_file(path)
    assert "lait" not in str(caught.value)


def test_a_file_over_the_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(InvalidTextError, match="16 MiB"):
        read_text(path)


def test_files_of_a_directory_in_a_fixed_order(tmp_path: Path) -> None:
    for name in [
        "b.txt",
        "a/z.md",
        "a/.hidden",
        ".git/config",
        "node_modules/x.js",
        "a/__pycache__/c.py",
        "c",
    ]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "link.txt").symlink_to(tmp_path / "b.txt")
    assert [str(p.relative_to(tmp_path)) for p in iter_files(tmp_path)] == ["b.txt", "c", "a/z.md"]
    assert list(iter_files(tmp_path / "b.txt")) == [tmp_path / "b.txt"]
    with pytest.raises(NotFoundError):
        list(iter_files(tmp_path / "none"))
