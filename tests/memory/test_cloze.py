"""Questions made of plain text: each sentence asks for the passage that it is missing from."""

import gzip
import json
from pathlib import Path

import pytest

from mnemos.errors import NotFoundError, UsageError
from mnemos.memory.cloze import cloze_pieces

TEXT = " ".join(
    f"This is sentence {number} of a text about {number * 7} ships and sails." for number in range(40)
)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "books.jsonl.gz"
    with gzip.open(path, "wt") as file:
        for title in "abc":
            file.write(json.dumps({"title": title, "text": TEXT.replace("ships", title)}) + "\n")
        file.write(json.dumps({"title": "short", "text": "One sentence only."}) + "\n")
    return path


def test_a_sentence_asks_for_the_passage_without_it(texts: Path) -> None:
    pieces = cloze_pieces(texts, 130, seed=1)
    assert len(pieces[0].conversation.memories) == 100
    for piece in pieces:
        passages = {turn.id: turn for turn in piece.conversation.memories}
        for question in piece.conversation.questions:
            passage = passages[question.evidence[0]]
            assert question.question not in passage.text
            start = passage.text[:12]
            assert start.startswith("This is sent") and len(passage.text) <= 420
    assert cloze_pieces(texts, 130, seed=1) == pieces != cloze_pieces(texts, 130, seed=2)


def test_files_that_hold_no_text_are_told(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        cloze_pieces(tmp_path / "none.jsonl", 10, 0)
    broken = tmp_path / "broken.jsonl"
    for line in ('{"title": "no text"}', "[1, 2]", "not json"):
        broken.write_text(line)
        with pytest.raises(UsageError, match="Line 1"):
            cloze_pieces(broken, 10, 0)
    broken.write_text('{"text": "One sentence only."}')
    with pytest.raises(UsageError, match="two sentences"):
        cloze_pieces(broken, 10, 0)
