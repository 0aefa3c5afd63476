"""What others would find, measured over the same memories: BM25, a sentence encoder, and both joined by
reciprocal rank (k = 60, as in the paper that proposed it: doi 10.1145/1571941.1572114).
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from mnemos.attention.embedder import Embedder, embedder_named
from mnemos.attention.embedder_files import MINILM
from mnemos.attention.projection import similarity
from mnemos.errors import ModelError
from mnemos.memory.bank import MemoryBank
from mnemos.memory.layout import said_in
from mnemos.memory.records import Memory

RIVALS = ("bm25", "minilm", "bm25+minilm")
_RANK_OFFSET = 60.0


def encoder() -> Embedder:
    """The rival's encoder. Raises ModelError when it isn't here."""
    found = embedder_named(MINILM.name)
    if found is None:
        raise ModelError(f"the rival's weights aren't here: `mnemos model pull {MINILM.name}` fetches them")
    return found


class Rivals:
    """Ranks the memories of one namespace as the rivals would."""

    def __init__(self, bank: MemoryBank, namespace: str, embedder: Embedder) -> None:
        self._bank = bank
        self._namespace = namespace
        self._embedder = embedder
        self._ids: list[str] = []
        self._vectors: list[Tensor] = []  # [dims] each

    def add(self, memories: Sequence[Memory]) -> None:
        """Memories that are searched from now on; of a long one its beginning."""
        for memory in memories:
            self._ids.append(memory.id)
            self._vectors.append(self._embedder.opening(said_in(memory)))

    def rankings(self, question: str, hidden: Collection[str]) -> dict[str, list[str]]:
        """Ids, best first, by each of `RIVALS`, of those that aren't hidden."""
        near = similarity(self._embedder.opening(question), torch.stack(self._vectors))
        order = near.argsort(descending=True, stable=True).tolist()
        by_vector = [self._ids[at] for at in order if self._ids[at] not in hidden]
        ranked = self._bank.store.lexical(self._namespace, question, len(self._ids))
        by_words = [memory_id for memory_id, _ in ranked]
        joined: dict[str, float] = {}
        for ranking in (by_words, by_vector):
            for rank, memory_id in enumerate(ranking, 1):
                joined[memory_id] = joined.get(memory_id, 0.0) + 1 / (_RANK_OFFSET + rank)
        both = sorted(joined, key=lambda memory_id: -joined[memory_id])
        return dict(zip(RIVALS, (by_words, by_vector, both), strict=True))
