"""Recall for MSA checkpoints: every memory of the namespace is a document that each routing layer may choose.

Routing keys of the whole namespace are compared with the question, as published: time and memory grow with
the number of memories. They are read from the bank once and then held, up to the budget of `RouteIndex`.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

import torch
from torch import Tensor

from mnemos.attention.interleave import MsaTokens
from mnemos.attention.kv import KVCache, SpanKV
from mnemos.attention.memory_codec import RouteKeys
from mnemos.attention.models import LanguageModel
from mnemos.attention.msa_router import routing_keys
from mnemos.attention.pooled import msa_of, new_pooled_cache
from mnemos.attention.pooled_cache import Choices, PooledKeys
from mnemos.attention.pooled_codec import decode_pooled_kv, decode_pooled_route
from mnemos.errors import BankLockedError, InvalidSelectorError, NotFoundError
from mnemos.memory.convert import to_memory
from mnemos.memory.pager import Pager
from mnemos.memory.pooled_encoder import PooledEncoder, document_text, number_of
from mnemos.memory.recall import DEFAULT_K, Recall, Recaller
from mnemos.memory.records import LikeHit, LikeMatch, Memory, RecalledMemory, RouterName
from mnemos.memory.reviving import KVSource
from mnemos.memory.route_index import RouteIndex
from mnemos.memory.router import standardised
from mnemos.store.selectors import Condition
from mnemos.store.store import Store

_EVERY = 1 << 31  # more memories than a namespace holds
_LEXICAL = 256  # memories that share words with a query


@dataclass(frozen=True, slots=True)
class Documents:
    """The memories that a question chooses from; `keys` counts documents as `ids` does."""

    ids: tuple[str, ...]
    keys: PooledKeys


class PooledRecaller(Recaller):
    """A bank as an MSA checkpoint reads it."""

    def _prepare(self, store: Store, model: LanguageModel) -> None:
        self._embedder = None
        self._projection = None  # such a checkpoint brings a trained router
        config, dtype = model.config, model.decoder.dtype
        self.encoder = PooledEncoder(store, model)
        self.kv_source = KVSource(store, self.encoder)
        self.pager = Pager(
            self.kv_source.read,
            lambda payload: decode_pooled_kv(payload, config, dtype),
            read_many=self.kv_source.read_many,
        )
        self.routes = RouteIndex(store.get_routes, lambda payload: decode_pooled_route(payload, config))
        self.words = MsaTokens(model.tokenizer)

    def warm(self) -> None:
        """As `Recaller.warm`: nothing that could be made ahead."""

    def documents(
        self, namespace: str, exclude: frozenset[str] = frozenset(), where: Condition | None = None
    ) -> Documents:
        """What a question of the namespace can choose from: what `where` allows, without `exclude`."""
        self.refresh()
        ids = [i for i in self._store.recent_ids(namespace, _EVERY, where=where) if i not in exclude]
        return self._documents(namespace, self.routes.records(namespace, ids))

    def no_documents(self) -> Documents:
        """Nothing to choose from."""
        return self._documents("", {})

    def memory(self, namespace: str, memory_id: str) -> Memory | None:
        """A memory, or None when it was forgotten meanwhile."""
        try:
            return to_memory(self._store.get(namespace, memory_id))
        except NotFoundError:
            return None

    def texts_of(self, namespace: str, documents: Documents, numbers: Sequence[int]) -> dict[int, str]:
        """The texts that numbers name; what they don't name is left out."""
        texts: dict[int, str] = {}
        for memory_id in self.named(documents, numbers):
            if (memory := self.memory(namespace, memory_id)) is not None:
                number = number_of(memory_id)
                texts[number] = "\n".join([*filter(None, [texts.get(number)]), document_text(memory)])
        return texts

    def named(self, documents: Documents, numbers: Sequence[int]) -> list[str]:
        """Ids of the memories that numbers name."""
        wanted = set(numbers)
        return [memory_id for memory_id in documents.ids if number_of(memory_id) in wanted]

    def search(
        self,
        query: str,
        *,
        namespace: str,
        limit: int,
        router: RouterName = "full",
        where: Condition | None = None,
        now: datetime | None = None,
    ) -> Sequence[RecalledMemory]:
        """The best memories for a query that stands alone: mean over layers of the routing score, with the
        lexical index unless `router` leaves words out. `now` is not looked at: this router knows no days.
        """
        self._catch_up(namespace)
        documents = self.documents(namespace, where=where)
        if not documents.ids or not self.model.tokenizer.encode(query):
            return []
        signals = {"router": self._scores(documents, query)}
        if router == "full":
            lexical = dict(self._store.lexical(namespace, query, _LEXICAL, where=where))
            signals["lexical"] = torch.tensor([lexical.get(i, 0.0) for i in documents.ids])
        fused = torch.stack([standardised(values) for values in signals.values()]).sum(dim=0)
        found: list[RecalledMemory] = []
        for index in fused.argsort(descending=True, stable=True)[:limit].tolist():
            if (memory := self.memory(namespace, documents.ids[index])) is not None:
                each = {name: float(values[index]) for name, values in signals.items()}
                found.append(
                    RecalledMemory(
                        memory=memory, rank=len(found) + 1, score=float(fused[index]), signals=each
                    )
                )
        return found

    def like(
        self,
        text: str,
        *,
        namespace: str,
        threshold: float | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> LikeMatch:
        """What of a namespace is like a text: every memory is scored, hidden ones too."""
        self._catch_up(namespace)
        if not self.model.tokenizer.encode(text):
            raise InvalidSelectorError("`like` needs a word to go by; its text has none.")
        least = self.model.calibration.recall_threshold if threshold is None else threshold
        ids = self._store.traced_ids(namespace)
        documents = self._documents(namespace, self.routes.records(namespace, ids))
        scores = standardised(self._scores(documents, text)).tolist() if documents.ids else []
        if on_progress is not None:
            on_progress(len(ids), len(ids))
        ranked = sorted(zip(scores, documents.ids, strict=True), key=lambda pair: -pair[0])
        return LikeMatch(
            text=text,
            threshold=least,
            scored=len(ranked),
            unscored=self._store.count(namespace) - len(ranked),
            best=ranked[0][0] if ranked else None,
            hits=tuple(LikeHit(id=memory_id, score=score) for score, memory_id in ranked if score >= least),
        )

    def recall(
        self,
        query: str,
        context: KVCache,
        words: Sequence[int],
        *,
        namespace: str,
        k: int = DEFAULT_K,
        exclude: frozenset[str] = frozenset(),
        selective: bool = True,
        where: Condition | None = None,
        as_text: bool = False,
    ) -> Recall:
        """Refused: a pooled memory is chosen by each layer as it prefills, not before."""
        self.model.require_full_resolution()
        raise AssertionError("a pooled recaller has a model of the pooled read mode")

    def _catch_up(self, namespace: str) -> None:
        self.refresh()
        with suppress(BankLockedError):  # somebody else is writing: search what is encoded already
            self.encode_pending(namespace)

    def _documents(self, namespace: str, records: Mapping[str, RouteKeys]) -> Documents:
        msa, ids = msa_of(self.model.decoder), tuple(records)
        layers = len(msa.router_layers)
        parts = [torch.unflatten(record.keys, 0, (layers, -1)) for record in records.values()]
        keys = routing_keys(torch.cat(parts, dim=2), msa) if parts else torch.empty(0)
        chunks = [record.tokens for record in records.values()]

        def read(index: int) -> SpanKV:
            with torch.inference_mode(False):  # what the pager holds is overwritten when it is erased
                return self.pager.page(namespace, [ids[index]])[0][0].dense()

        return Documents(ids, PooledKeys(keys, chunks, read))

    def _scores(self, documents: Documents, query: str) -> Tensor:
        """Routing scores of a question alone, standardised in each layer and averaged, `[documents]`."""
        words = self.words.question(query)[: self.model.config.max_positions // 2]
        choices = Choices()
        cache = new_pooled_cache(self.model.decoder, len(words), self.encoder.prefix, documents.keys)
        try:
            cache.choose_at_prefill(range(len(words)))
            self.model.decoder.prefill(words, cache)
            choices = cache.choices
        finally:
            cache.zero_()
        return torch.stack([standardised(scores) for scores in choices.scores.values()]).mean(dim=0)


def recaller_for(store: Store, model: LanguageModel) -> Recaller:
    """The recaller of a model's read mode."""
    return Recaller(store, model) if model.config.msa is None else PooledRecaller(store, model)
