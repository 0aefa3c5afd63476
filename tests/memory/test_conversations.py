import gzip
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mnemos.errors import NotFoundError, UsageError
from mnemos.memory.conversations import read_conversations

LINE = (
    '{"id": "c", "memories": [{"id": "a", "speaker": "Ann", "time": "2025-12-15 (Monday)", "text": "one"}, '
    '{"id": "b", "text": "two"}], "questions": [{"question": "q?", "answer": "x", "evidence": ["a"], '
    '"before": "b"}, {"question": "r?"}]}\n'
)


@pytest.mark.parametrize("packed", [True, False], ids=["gzip", "plain"])
def test_a_file_is_read_line_by_line(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / ("data.jsonl.gz" if packed else "data.jsonl")
    content = (LINE + "\n" + LINE).encode()
    path.write_bytes(gzip.compress(content) if packed else content)
    first, second = read_conversations(path)
    assert first == second
    assert first.memories[0].created_at == datetime(2025, 12, 15, tzinfo=UTC)
    assert [turn.id for turn in first.visible(first.questions[0])] == ["a"]
    assert [turn.id for turn in first.visible(first.questions[1])] == ["a", "b"]


def test_dates_that_are_none_are_one_fixed_day(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(LINE.replace("2025-12-15", "2025-13-45"))
    (conversation,) = read_conversations(path)
    assert conversation.memories[0].created_at == conversation.memories[1].created_at


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (LINE + "{}\n", "Line 2"),
        (LINE + "nonsense\n", "Line 2"),
        (LINE.replace('"text": "one"', '"text": 1'), "text"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(content)
    with pytest.raises(UsageError, match=said):
        list(read_conversations(path))


def test_missing_and_truncated_files(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no file"):
        list(read_conversations(tmp_path / "none.jsonl"))
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(gzip.compress(LINE.encode() * 50)[:-20])
    with pytest.raises(UsageError, match="can't be read"):
        list(read_conversations(path))
    path.write_bytes(b"not gzip at all")
    with pytest.raises(UsageError, match="can't be read"):
        list(read_conversations(path))
