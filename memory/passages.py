"""Passages of real-size text for measurements: from a file of books, or made up where there is none."""

import gzip
import json
import random
import zlib
from collections.abc import Iterator
from pathlib import Path

from mnemos.errors import NotFoundError, UsageError
from mnemos.store.bench_erase import make_texts

CHARS_PER_TOKEN = 4.3  # of English prose, about
_EDITED = 20  # one word of so many becomes another when a file is gone through again
_MADE_WORDS = 0.38  # made-up words to a token of the default model, about


def passages(path: Path | None, tokens: int, *, seed: int = 0) -> Iterator[str]:
    """Passages of about `tokens` tokens each, without end: the file's in their order, again with other edits
    once it is through. Without a file the words are made up.

    The file has one JSON object with a `text` a line, gzipped when its name ends in `.gz`. Raises
    NotFoundError, and UsageError when it holds no text.
    """
    if path is None:
        yield from make_texts(1 << 62, words=max(int(tokens * _MADE_WORDS), 1))
        return
    chance = random.Random(seed)
    size = max(int(tokens * CHARS_PER_TOKEN), 20)
    turn = 0
    while True:
        found = 0
        for text in texts_of(path):
            for passage in cut(text, size):
                found += 1
                yield edited(passage, chance) if turn else passage
        if not found:
            raise UsageError(f"{path} has no text of {size} characters or more to make memories of.")
        turn += 1


def texts_of(path: Path) -> Iterator[str]:
    """The `text` of each line of a file. NotFoundError, UsageError."""
    if not path.is_file():
        raise NotFoundError(f"There is no file {path}.")
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8") as lines
        ):
            for number, line in enumerate(lines, 1):
                document = json.loads(line)
                if not isinstance(document, dict) or not isinstance(document.get("text"), str):
                    raise UsageError(f"{path}, line {number}: not a JSON object with a `text`.")
                yield document["text"]
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} can't be read as JSON lines ({type(error).__name__}).") from None


def cut(text: str, size: int) -> Iterator[str]:
    """Pieces of about `size` characters, cut between words; the rest at the end is left out."""
    start = 0
    while start + size <= len(text):
        end = text.find(" ", start + size)
        if end < 0:
            return
        passage = " ".join(text[start:end].split())
        if len(passage) >= size // 2:
            yield passage
        start = end + 1


def edited(passage: str, chance: random.Random) -> str:
    """The same passage with a few of its words exchanged and a number put in."""
    words = passage.split(" ")
    for _ in range(max(len(words) // _EDITED, 1)):
        words[chance.randrange(len(words))] = words[chance.randrange(len(words))]
    words[chance.randrange(len(words))] = str(chance.randrange(1_000_000))
    return " ".join(words)


def question_about(passage: str, chance: random.Random) -> str:
    """A question whose words are some of the passage's, in their order."""
    words = passage.split(" ")
    at = chance.randrange(max(len(words) - 8, 1))
    return f"What was said about {' '.join(words[at : at + 8])}?"
