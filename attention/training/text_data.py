"""Text files as training data: plain text, or JSON lines of documents with a question.

Of plain text, a sample is a passage to go on with, and before it, in random order, the passage that comes
right before it in the file and others from anywhere. So the router learns from text alone: the passage right
before is the evidence. A JSON line `{"documents": [...], "question": ..., "answer": ..., "evidence": [0]}`
says all that itself, and `{"text": "..."}` is plain text.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnemos.attention.training.batches import IGNORED, Sample, next_tokens
from mnemos.errors import InvalidTextError, UsageError

BYTE_VOCAB = 256
Encode = Callable[[str], list[int]]


def as_bytes(text: str) -> list[int]:
    """The simplest tokens: UTF-8 bytes."""
    return list(text.encode())


@dataclass(frozen=True, slots=True)
class _Asked:
    documents: tuple[Tensor, ...]  # none longer than a document may be
    evidence: tuple[bool, ...]
    question: Tensor
    answer: Tensor


class TextData:
    """Samples from files. Which passages a sample has follows from its number and the seed alone."""

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        document: int,
        seed: int,
        encode: Encode = as_bytes,
        vocab: int = BYTE_VOCAB,
    ) -> None:
        """Reads all files; a document has at most `document` tokens.

        Raises:
            InvalidTextError: a file that is not UTF-8, or a line that is no JSON of the forms above.
            UsageError: fewer than two passages of text and no question.
        """
        self.vocab = vocab
        self._document, self._seed, self._encode = document, seed, encode
        self._passages: list[Tensor] = []
        self._followed: list[int] = []  # passages that another one of the same text follows
        self._asked: list[_Asked] = []
        for path in paths:
            self._read(path)
        if not self._asked and not self._followed:
            raise UsageError(
                f"the data has no text longer than one document of {document} tokens; "
                "give more text, or a smaller --document"
            )

    def sample(self, index: int, length: int) -> Sample:
        """As `Source.sample`. Where there are both, every second sample is a question."""
        random = np.random.default_rng([self._seed, index, length])
        if self._asked and (not self._followed or index % 2):
            return self._question(random, length)
        return self._continuation(random, length)

    def _continuation(self, random: np.random.Generator, length: int) -> Sample:
        count = length // self._document - 1  # of documents before the passage
        if count < 1:
            raise UsageError(
                f"a sample of text has at least two documents of {self._document} tokens, not {length} "
                "tokens; train on longer sequences, or with a smaller --document"
            )
        before = self._followed[random.integers(len(self._followed))]
        others = random.permutation(len(self._passages))[: count + 1]
        chosen = [int(each) for each in others if each not in (before, before + 1)][: count - 1]
        place = int(random.integers(len(chosen) + 1))
        chosen.insert(place, before)
        documents = (*(self._passages[each] for each in chosen), self._passages[before + 1])
        return Sample(
            documents,
            tuple(map(next_tokens, documents)),
            torch.ones(len(documents[-1]), dtype=torch.bool),
            tuple(each == before for each in chosen),
        )

    def _question(self, random: np.random.Generator, length: int) -> Sample:
        asked = self._asked[random.integers(len(self._asked))]
        whole = torch.cat((asked.question, asked.answer))[-self._document :]
        targets = next_tokens(whole)
        given = max(len(whole) - len(asked.answer), 1)
        targets[: given - 1] = IGNORED  # the question is given, not said
        room = length - len(whole)
        kept: list[int] = []
        evidence_first = sorted(
            random.permutation(len(asked.documents)).tolist(), key=lambda each: not asked.evidence[each]
        )
        for each in evidence_first:
            if len(asked.documents[each]) <= room:
                kept.append(each)
                room -= len(asked.documents[each])
        kept.sort()
        documents = tuple(asked.documents[each] for each in kept)
        return Sample(
            (*documents, whole),
            (*map(next_tokens, documents), targets),
            torch.arange(len(whole)) < given,
            tuple(asked.evidence[each] for each in kept),
        )

    def _read(self, path: Path) -> None:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InvalidTextError(f"{path} is not UTF-8 (byte {error.start}); convert it first") from None
        if path.suffix != ".jsonl":
            self._add_text(text)
            return
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                try:
                    self._add_line(json.loads(line))
                except (ValueError, KeyError, TypeError, AttributeError):
                    raise InvalidTextError(
                        f"{path} line {number} is neither a text nor documents with a question; "
                        'write {"text": ...} or {"documents", "question", "answer", "evidence"}'
                    ) from None

    def _add_line(self, line: Any) -> None:
        if "text" in line:
            self._add_text(line["text"])
            return
        evidence = {int(each) for each in line["evidence"]}
        if not evidence <= set(range(len(line["documents"]))):
            raise ValueError("evidence that is no document")
        pieces = [
            (piece, number in evidence)
            for number, document in enumerate(line["documents"])
            for piece in self._pieces(document)
        ]
        question, answer = (
            torch.tensor(self._encode(line[part]), dtype=torch.int64) for part in ("question", "answer")
        )
        if not len(question) or not len(answer):
            raise ValueError("a question or an answer without words")
        documents = tuple(piece for piece, _ in pieces)
        self._asked.append(
            _Asked(documents, tuple(is_evidence for _, is_evidence in pieces), question, answer)
        )

    def _add_text(self, text: str) -> None:
        pieces = self._pieces(text)
        first = len(self._passages)
        self._passages += pieces
        self._followed += range(first, first + len(pieces) - 1)

    def _pieces(self, text: str) -> list[Tensor]:
        tokens = torch.tensor(self._encode(text), dtype=torch.int64)
        return list(torch.split(tokens, self._document)) if len(tokens) else []
