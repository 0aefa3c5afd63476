"""The needle task: facts spread over documents among noise, and a question about those of one document.

A fact is a key token followed by a value token. The question names keys, and after each the value has to be
said; it can be known from one document alone. Keys differ within a sequence, so a longer one is harder only
by its length.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mnemos.attention.training.batches import IGNORED, Sample
from mnemos.errors import UsageError

_FIRST = 1  # token 0 stands at padding


@dataclass(frozen=True, slots=True, kw_only=True)
class NeedleSizes:
    """Lengths are in tokens, the rest are counts."""

    document: int = 64
    facts: int = 4  # of each document, as long as there are keys
    keys: int = 256
    values: int = 64
    noise: int = 64  # different tokens of noise


class NeedleTask:
    """Samples of the needle task. `stream` parts what is trained on from what is measured on."""

    def __init__(self, sizes: NeedleSizes, *, seed: int, stream: int = 0) -> None:
        if sizes.document < 2 * sizes.facts or min(sizes.facts, sizes.values, sizes.noise) < 1:
            raise UsageError(f"{sizes.facts} facts need documents of {2 * sizes.facts} tokens at least")
        if sizes.keys < sizes.facts:
            raise UsageError(f"{sizes.facts} facts a document need as many keys, not {sizes.keys}")
        self.sizes = sizes
        self.vocab = _FIRST + sizes.keys + sizes.values + sizes.noise
        self._key = (seed, stream)

    def sample(self, index: int, length: int) -> Sample:
        """As `Source.sample`."""
        sizes = self.sizes
        question_length = 2 * sizes.facts
        count = (length - question_length) // sizes.document
        if count < 1:
            raise UsageError(
                f"a needle sample has at least {sizes.document + question_length} tokens, not {length}; "
                "train on longer sequences, or with shorter documents"
            )
        random = np.random.default_rng([*self._key, index, length])
        with_facts = min(count, sizes.keys // sizes.facts)
        keys = _FIRST + random.permutation(sizes.keys)[: with_facts * sizes.facts].reshape(-1, sizes.facts)
        values = _FIRST + sizes.keys + random.integers(sizes.values, size=keys.shape)
        noise = (
            _FIRST + sizes.keys + sizes.values + random.integers(sizes.noise, size=(count, sizes.document))
        )
        holders = np.sort(random.permutation(count)[:with_facts])
        slots = sizes.document // 2  # a fact starts at an even place
        for holder, its_keys, its_values in zip(holders, keys, values, strict=True):
            places = 2 * random.permutation(slots)[: sizes.facts]
            noise[holder, places], noise[holder, places + 1] = its_keys, its_values
        asked = int(random.integers(with_facts))
        order = random.permutation(sizes.facts)
        question = np.stack((keys[asked, order], values[asked, order]), axis=1).reshape(-1)
        documents = tuple(torch.from_numpy(row) for row in noise)
        return Sample(
            (*documents, torch.from_numpy(question)),
            (*(torch.full_like(document, IGNORED) for document in documents), _answers(question)),
            torch.arange(len(question)) % 2 == 0,
            tuple(bool(document == holders[asked]) for document in range(count)),
        )


def _answers(question: "np.ndarray") -> Tensor:
    """The value after each key; nothing after a value."""
    targets = torch.full((len(question),), IGNORED)
    targets[0::2] = torch.from_numpy(question[1::2])
    return targets
