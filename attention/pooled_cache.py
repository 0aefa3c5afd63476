"""The KV buffer of pooled reading: in each MSA layer the documents it chose, then template and question.

    slots      [ .... documents | template | question and reply -> ]
    positions    0.. in each      0 .. 2     3 + top_k ..

Documents end where the template begins, and every layer has as many as it chose: what a layer sees is one
stretch of slots. Layers that don't route see template, question and reply alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mnemos.attention.config import ModelConfig
from mnemos.attention.kv import KVCache, SpanKV
from mnemos.attention.msa_config import MsaConfig
from mnemos.attention.msa_router import chunk_scores, document_scores, top_documents
from mnemos.errors import ContextOverflowError, InvalidWeightsError


@dataclass(frozen=True, slots=True)
class PooledKeys:
    """Routing keys of the documents that a question can choose from, and the way to their pooled KV."""

    keys: Tensor  # [router layers, kv_heads, chunks of all documents, head_dim], fp32, from `routing_keys`
    chunks: Sequence[int]  # of each document
    read: Callable[[int], SpanKV]  # document -> its KV, [router layers, kv_heads, its chunks, head_dim]


@dataclass(slots=True)
class Choices:
    """What one prefill chose."""

    documents: dict[int, tuple[int, ...]] = field(default_factory=dict)  # layer -> chosen, best first
    scores: dict[int, Tensor] = field(default_factory=dict)  # layer -> [documents]

    @property
    def chosen(self) -> tuple[int, ...]:
        """Every document that some layer chose: first those of most layers, then those of the best rank."""
        ranks: dict[int, list[int]] = {}
        for documents in self.documents.values():
            for rank, document in enumerate(documents):
                ranks.setdefault(document, []).append(rank)
        return tuple(sorted(ranks, key=lambda each: (-len(ranks[each]), sum(ranks[each]), each)))


class PooledCache(KVCache):
    """A `KVCache` in front of which each MSA layer lays the documents that it chooses at prefill."""

    def __init__(self, config: ModelConfig, capacity: int, dtype: torch.dtype, documents: PooledKeys) -> None:
        """Room for `capacity` tokens besides the documents."""
        if config.msa is None:
            raise InvalidWeightsError(f"model {config.name} has no msa_config: it can't read pooled memories")
        self.msa: MsaConfig = config.msa
        longest = sorted(documents.chunks, reverse=True)[: self.msa.top_k]
        self.reserved = sum(longest)  # slots in front, for the documents of any choice
        super().__init__(config, capacity + self.reserved, dtype)
        self.length = self.reserved
        self.choices = Choices()
        self._documents = documents
        self._question: Tensor | None = None  # rows of the coming prefill that route
        self._first = [self.reserved] * config.layers

    def load_template(self, template: SpanKV) -> None:
        """Put the template's KV first; what follows starts `top_k` positions after it."""
        if self.length != self.reserved:
            raise ValueError("a template goes into an empty cache")
        self._place(template)
        self.next_position = template.tokens + self.msa.top_k

    def choose_at_prefill(self, question: Sequence[int]) -> None:
        """Let the next prefill choose documents by these rows (indices) of its tokens.

        Raises ContextOverflowError when there are none.
        """
        if not question:
            raise ContextOverflowError("a question without words can't choose documents; ask something")
        self._question = torch.tensor(list(question)) if self._documents.chunks else None

    def routes(self, layer: int) -> bool:
        """Whether the layer chooses its documents in the prefill that runs."""
        return self._question is not None and layer in self.msa.router_layers

    def route(self, layer: int, queries: Tensor) -> None:
        """Choose a layer's documents by its routing queries `[heads, tokens, head_dim]`; place their KV."""
        assert self._question is not None, "asked only where `routes` says so"
        row = self.msa.router_layers.index(layer)
        by_chunk = chunk_scores(queries[:, self._question], self._documents.keys[row], self.msa)
        scores = document_scores(by_chunk, self._documents.chunks, self.msa)
        chosen = top_documents(scores, self.msa.top_k)
        self.choices.scores[layer], self.choices.documents[layer] = scores, tuple(chosen)
        start = self.reserved
        for document in reversed(chosen):
            span = self._documents.read(document)
            end, start = start, start - span.tokens
            self.k[layer, :, start:end] = span.k[row]
            self.v[layer, :, start:end] = span.v[row]
        self._first[layer] = start

    def first_slot(self, layer: int) -> int:
        """Where what the layer sees begins."""
        return self._first[layer]

    def advance(self, tokens: int) -> None:
        super().advance(tokens)
        self._question = None  # documents are chosen at prefill; what follows reads them

    def zero_(self) -> None:
        super().zero_()
        self._first = [self.reserved] * len(self._first)
        self.choices = Choices()
        self.length = self.reserved
