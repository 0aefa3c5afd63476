"""Conversation files: what recall and reading are measured on.

One JSON object a line, gzipped when the name ends in `.gz`: `{"id", "memories": [{"id", "speaker", "time",
"text"}], "questions": [{"question", "answer", "evidence": [memory id], "category", "before"?}]}`. `evidence`
may be empty; where `before` names a memory, only those ahead of it exist when the question is asked.
"""

import gzip
import re
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mnemos.errors import NotFoundError, UsageError
from mnemos.memory.bank import MAX_TEXT_BYTES

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_UNDATED = datetime(2026, 1, 1, tzinfo=UTC)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Turn(_Part):
    """One memory of a conversation."""

    id: str
    speaker: str = ""
    time: str = ""
    text: str

    @property
    def created_at(self) -> datetime:
        """The day that `time` names, or one day for all that name none: a measurement is repeatable."""
        found = _DATE.search(self.time)
        try:
            return datetime.fromisoformat(found.group()).replace(tzinfo=UTC) if found else _UNDATED
        except ValueError:
            return _UNDATED


class Question(_Part):
    """One question, the answer it should get, and the memories that hold it."""

    question: str
    answer: str = ""
    evidence: tuple[str, ...] = ()
    category: str = ""
    before: str | None = None


class Conversation(_Part):
    """Memories in the order they were made, and questions about them."""

    id: str = ""
    memories: tuple[Turn, ...]
    questions: tuple[Question, ...] = Field(default=())

    def visible(self, question: Question) -> tuple[Turn, ...]:
        """The memories that exist when the question is asked."""
        for index, turn in enumerate(self.memories):
            if turn.id == question.before:
                return self.memories[:index]
        return self.memories


def fitting(text: str) -> str:
    """As much of a turn's text as one memory takes; a dash for none."""
    return text.encode()[:MAX_TEXT_BYTES].decode(errors="ignore") or "-"


def read_conversations(path: Path) -> Iterator[Conversation]:
    """The conversations of a file, one at a time. NotFoundError, UsageError with the line that is wrong."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
            for line in lines:
                number += 1
                if line.strip():
                    yield Conversation.model_validate_json(line)
    except FileNotFoundError:
        raise NotFoundError(f"There is no file {path}. Check the path.") from None
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "the line"
        what = error.errors()[0]["msg"]
        raise UsageError(
            f"Line {number} of {path.name} is not a conversation ({where}: {what}). One JSON object a line "
            "with `memories` and `questions` is expected."
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} can't be read as a conversation file ({error}).") from None
