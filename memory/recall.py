"""Recall: score the memories of a namespace for a query, choose how many matter, page their KV in."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mnemos.attention.kv import KVCache, SpanKV
from mnemos.attention.memory_codec import decode_kv, decode_route
from mnemos.attention.models import LanguageModel
from mnemos.attention.routing import RouteQuery, route_query
from mnemos.memory.convert import to_memory
from mnemos.memory.encoder import MemoryEncoder
from mnemos.memory.pager import Pager
from mnemos.memory.records import Memory, RecalledMemory, RouterName
from mnemos.memory.route_index import RouteIndex
from mnemos.memory.router import Router, Scored
from mnemos.store.store import Store

DEFAULT_K = 4
PAGED_TOKENS = 2048  # most memory tokens brought in for one reply
_SPAN_SHARE = 0.5  # of the mass of a memory's best span, for another span to be read too


@dataclass(frozen=True, slots=True)
class Recall:
    """What a query brought back: memories best first, their KV spans, and what it cost."""

    memories: tuple[RecalledMemory, ...]
    spans: tuple[SpanKV, ...]
    owners: tuple[int, ...]  # of each span: index into `memories`
    route_ms: float
    page_ms: float

    @property
    def tokens(self) -> int:
        return sum(span.tokens for span in self.spans)

    @property
    def bytes(self) -> int:
        return sum(span.nbytes for span in self.spans)


class Recaller:
    """A bank as one model reads it: encoder, router, pager and their caches in host memory."""

    def __init__(self, store: Store, model: LanguageModel) -> None:
        self.model = model
        self._store = store
        self.encoder = MemoryEncoder(store, model)
        config, dtype = model.config, model.decoder.dtype
        self.pager = Pager(store.get_kv, lambda payload: decode_kv(payload, config, dtype))
        self.routes = RouteIndex(store.get_routes, decode_route)
        self._router = Router(store, self.routes, model)
        self.epoch = store.erase_epoch()
        _, tail = model.template.parts("system", model.tokenizer)
        user_head, _ = model.template.parts("user", model.tokenizer)
        self._query_head = [*tail, *user_head]

    def close(self) -> None:
        self.pager.drop()
        self.routes.drop()

    def drop(self, namespace: str, ids: Sequence[str]) -> None:
        """Overwrite and let go of what is held of those memories."""
        for memory_id in ids:
            self.pager.drop(namespace, memory_id)
            self.routes.drop(namespace, memory_id)

    def refresh(self) -> None:
        """Let go of everything held when another process erased something since the last look."""
        epoch = self._store.erase_epoch()
        if epoch != self.epoch:
            self.close()
            self.epoch = epoch

    def encode_pending(
        self, namespace: str | None = None, *, on_progress: Callable[[int, int], None] | None = None
    ) -> int:
        return self.encoder.encode_pending(namespace, on_progress=on_progress)

    def new_context(self, capacity: int) -> KVCache:
        """A cache that holds the frozen prefix."""
        cache = self.model.decoder.new_cache(capacity)
        cache.load_prefix(self.encoder.prefix)
        return cache

    def search(
        self, query: str, *, namespace: str, limit: int, router: RouterName = "full"
    ) -> Sequence[RecalledMemory]:
        """The best memories for a query that stands alone, best first."""
        self.refresh()
        self.encode_pending(namespace)
        words = self.model.tokenizer.encode(query)
        if not words:
            return []
        window = self.model.config.max_positions - self.encoder.prefix.tokens - len(self._query_head)
        words = words[: window // 2]
        context = self.new_context(self.encoder.prefix.tokens + len(self._query_head) + len(words))
        self.model.decoder.prefill(self._query_head, context)
        states = route_query(self.model.decoder, self.model.calibration, context, words)
        scored = self._router.score(namespace, query, states, limit=limit, router=router)
        return self._described(namespace, scored)

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
    ) -> Recall:
        """Up to `k` memories for the message `words` (token ids of `query`) read behind `context`.

        Fewer, or none, when the scores say that little matters, unless `selective` is off. `exclude` are
        memories already in working memory. The context is left as it was.
        """
        self.refresh()
        started = time.perf_counter()
        states: RouteQuery = route_query(self.model.decoder, self.model.calibration, context, words)
        if selective:
            scored = self._router.choose(namespace, query, states, k=k, exclude=exclude)
        else:
            scored = self._router.score(namespace, query, states, limit=k)
        described = self._described(namespace, scored)
        routed = time.perf_counter()
        blocks = self.pager.page(namespace, [r.memory.id for r in described])
        memories: list[RecalledMemory] = []
        spans: list[SpanKV] = []
        owners: list[int] = []
        tokens = 0
        for recalled, scored_memory, whole in zip(described, scored, blocks, strict=True):
            block = _telling_spans(whole, scored_memory.spans)
            size = sum(span.tokens for span in block)
            if tokens + size > PAGED_TOKENS:
                continue
            owners += [len(memories)] * len(block)
            memories.append(recalled)
            spans += block
            tokens += size
        paged = time.perf_counter()
        return Recall(
            tuple(memories), tuple(spans), tuple(owners), (routed - started) * 1e3, (paged - routed) * 1e3
        )

    def _described(self, namespace: str, scored: Sequence[Scored]) -> list[RecalledMemory]:
        return [
            RecalledMemory(memory=self._memory(namespace, s.id), rank=rank, score=s.score, signals=s.signals)
            for rank, s in enumerate(scored, 1)
        ]

    def _memory(self, namespace: str, memory_id: str) -> Memory:
        return to_memory(self._store.get(namespace, memory_id))


def _telling_spans(spans: Sequence[SpanKV], mass: Sequence[float]) -> list[SpanKV]:
    """The spans of one memory that the query points at: those with half the mass of its best span, or
    more.
    """
    best = max(mass, default=0.0)
    return [span for span, share in zip(spans, mass, strict=True) if share >= _SPAN_SHARE * best]
