"""What a model is trained on: sequences of documents and a question, side by side in a batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mnemos.attention.patterns.mixer import PADDING

IGNORED = -100
"""The target of a token after which nothing is predicted; what torch's losses leave out."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sequence: documents, then a question, which is its last document."""

    documents: tuple[Tensor, ...]  # of int64 [tokens >= 1] each, the question last
    targets: tuple[Tensor, ...]  # as documents: the token to predict after each, or IGNORED
    asks: Tensor  # bool, as the question: which of its tokens the router may know it by
    evidence: tuple[bool, ...]  # of each document but the question: whether it holds the answer


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences as a model takes them, padded behind their end."""

    tokens: Tensor  # [batch, tokens] int64
    positions: Tensor  # [batch, tokens] int64, from 0 in each document; PADDING
    targets: Tensor  # [batch, tokens] int64, or IGNORED
    asks: Tensor  # bool [batch, tokens]
    evidence: Tensor  # bool [batch, documents], the question not among them

    def to(self, device: torch.device) -> "Batch":
        """The same on another device."""
        parts = (self.tokens, self.positions, self.targets, self.asks, self.evidence)
        return Batch(*(part.to(device) for part in parts))


class Source(Protocol):
    """Where samples come from. The same numbers give the same sample, always and everywhere."""

    vocab: int

    def sample(self, index: int, length: int) -> Sample:
        """Sample number `index` of at most `length` tokens. Raises UsageError when none can be so short."""


def make_batch(samples: Sequence[Sample]) -> Batch:
    """Samples one below the other. Raises ValueError without any."""
    if not samples:
        raise ValueError("a batch needs at least one sample")
    longest = max(sum(len(document) for document in sample.documents) for sample in samples)
    most = max(len(sample.evidence) for sample in samples)
    shape = (len(samples), longest)
    tokens = torch.zeros(shape, dtype=torch.int64)
    positions = torch.full(shape, PADDING)
    targets = torch.full(shape, IGNORED)
    asks = torch.zeros(shape, dtype=torch.bool)
    evidence = torch.zeros(len(samples), most, dtype=torch.bool)
    for row, sample in enumerate(samples):
        flat = torch.cat(sample.documents)
        tokens[row, : len(flat)] = flat
        targets[row, : len(flat)] = torch.cat(sample.targets)
        positions[row, : len(flat)] = torch.cat([torch.arange(len(each)) for each in sample.documents])
        asks[row, len(flat) - len(sample.asks) : len(flat)] = sample.asks
        evidence[row, : len(sample.evidence)] = torch.tensor(sample.evidence, dtype=torch.bool)
    return Batch(tokens, positions, targets, asks, evidence)


def next_tokens(document: Tensor) -> Tensor:
    """Targets of plain language modelling for `document [tokens]`; its last token has none."""
    return torch.cat((document[1:], document.new_full((1,), IGNORED)))
