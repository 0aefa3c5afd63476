"""Training questions made of plain text: a sentence asks for the passage that it was taken out of.

The passage is kept without the sentence, so that finding it takes more than the words they share. Nobody
wrote these questions; they keep a router that was trained on few conversations from knowing nothing else.
"""

import gzip
import hashlib
import json
import random
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from mnemos.errors import NotFoundError, UsageError
from mnemos.memory.calibrating_data import Piece
from mnemos.memory.conversations import Conversation, Question, Turn

_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_PASSAGE_CHARS = 420
_ASKING_WORDS = (5, 40)  # of a sentence that asks
_LEFT_WORDS = 12  # of the passage without it, at least
_PIECE_PASSAGES = 100  # searched together
_TRIES = 4  # places looked at for each passage that is wanted


def cloze_pieces(path: Path, passages: int, seed: int) -> list[Piece]:
    """About so many passages, spread evenly over the texts of a file: one JSON object a line, `{"title",
    "text"}`.

    Raises NotFoundError, UsageError.
    """
    texts = [sentences for text in _texts(path) if len(sentences := _SENTENCE.split(text)) >= 2]
    if not texts:
        raise UsageError(f"{path} has no text of two sentences or more; name another file")
    draw = random.Random(seed)
    chosen = draw.sample(texts, min(len(texts), passages))
    share = -(-passages // len(chosen))
    made: list[tuple[Turn, Question]] = []
    for sentences in chosen:
        found = 0
        for _ in range(_TRIES * share):
            if found == share or len(made) == passages:
                break
            if (pair := _pair(sentences, len(made), draw)) is not None:
                made.append(pair)
                found += 1
    pieces = []
    for start in range(0, len(made), _PIECE_PASSAGES):
        some = made[start : start + _PIECE_PASSAGES]
        talk = Conversation(memories=tuple(turn for turn, _ in some), questions=tuple(one for _, one in some))
        digest = hashlib.sha256("\1".join(turn.text for turn, _ in some).encode()).hexdigest()
        pieces.append(Piece(path.name, digest, talk))
    return pieces


def _pair(sentences: list[str], number: int, draw: random.Random) -> tuple[Turn, Question] | None:
    """A passage and the sentence that was in it; None where this place gives none."""
    start = draw.randrange(len(sentences))
    taken: list[str] = []
    for sentence in sentences[start:]:
        if sum(map(len, taken)) + len(sentence) > _PASSAGE_CHARS:
            break
        taken.append(sentence)
    low, high = _ASKING_WORDS
    asking = [at for at, sentence in enumerate(taken) if low <= len(sentence.split()) <= high]
    if not asking:
        return None
    at = draw.choice(asking)
    left = " ".join([*taken[:at], *taken[at + 1 :]])
    if len(left.split()) < _LEFT_WORDS:
        return None
    day = f"2025-{draw.randint(1, 12):02d}-{draw.randint(1, 28):02d}"
    turn = Turn(id=str(number), time=day, text=left)
    return turn, Question(question=taken[at], evidence=(turn.id,))


def _texts(path: Path) -> Iterator[str]:
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
            for line in lines:
                number += 1
                if line.strip():
                    yield re.sub(r"\s+", " ", str(json.loads(line)["text"])).strip()
    except FileNotFoundError:
        raise NotFoundError(f"There is no file {path}. Check the path.") from None
    except (ValueError, LookupError, TypeError):
        raise UsageError(
            f"Line {number} of {path.name} is no text. One JSON object a line with `text` is expected."
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} can't be read as a file of texts ({error}).") from None
