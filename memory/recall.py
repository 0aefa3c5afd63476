"""Recall: score the memories of a namespace for a query, choose how many matter, page their KV in."""

import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from itertools import chain
from threading import RLock
from typing import TYPE_CHECKING, Protocol
from weakref import WeakSet

import torch

from mnemos.attention.compiled import kernels
from mnemos.attention.embedder import embedder_of
from mnemos.attention.kv import KVCache, Span, SpanKV
from mnemos.attention.memory_codec import decode_kv, decode_route
from mnemos.attention.models import LanguageModel
from mnemos.attention.one_thread import one_thread
from mnemos.attention.projection import Projection
from mnemos.attention.routing import RouteQuery, route_query
from mnemos.errors import BankLockedError, InvalidSelectorError, NotFoundError
from mnemos.memory.ahead import Ahead
from mnemos.memory.convert import to_memory
from mnemos.memory.encoder import MemoryEncoder
from mnemos.memory.likeness import like_match
from mnemos.memory.pager import Pager
from mnemos.memory.read_budget import PAGED_TOKENS, fitting, readable, telling_spans
from mnemos.memory.records import LikeMatch, Memory, RecallCost, RecalledMemory, RouterName
from mnemos.memory.reviving import KVSource
from mnemos.memory.route_index import RouteIndex
from mnemos.memory.router import Router, Scored
from mnemos.memory.settling import Statement, settled
from mnemos.store.selectors import Condition
from mnemos.store.store import Store

DEFAULT_K = 4
_RECALLS_KEPT = 16  # whose cost is told
_SMALL_HIDDEN = 1024  # of a model that reads a question in the time that looking memories up takes
_ANY_WORD = "hello"
_READ_TOKENS = 1024  # of a query, from its start: what it costs to read grows faster than what it tells
_CROWD = 512  # memories scored beyond k where repeats took the places of others
_SPARE = 6  # memories scored beyond k, in place of those that repeat the message or another memory

if TYPE_CHECKING:
    from torch import Tensor

    from mnemos.attention.gpu.pool import DevicePool
    from mnemos.attention.gpu.resident_keys import ResidentKeys
    from mnemos.memory.device_pager import DevicePager
    from mnemos.memory.vector_index import VectorIndex

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Recall:
    """What a query brought back: memories best first, their KV spans, and what it cost."""

    memories: tuple[RecalledMemory, ...]
    spans: tuple[Span, ...]
    owners: tuple[int, ...]  # of each span: index into `memories`
    route_ms: float
    page_ms: float

    @property
    def tokens(self) -> int:
        return sum(span.tokens for span in self.spans)

    @property
    def bytes(self) -> int:
        return sum(span.nbytes for span in self.spans)


class Watcher(Protocol):
    """Holds KV that was computed with memories in view, and clears it when one is erased."""

    def erased(self) -> None: ...


class Recaller:
    """A bank as one model reads it: encoder, router, pager and their caches in host memory."""

    def __init__(self, store: Store, model: LanguageModel) -> None:
        self.model = model
        self._store = store
        self._resident: ResidentKeys | None = None
        self._prepare(store, model)
        self.vectors: VectorIndex | None = None
        if self._projection is not None:
            from mnemos.memory.vector_index import index_of  # faiss takes a while to load

            self.vectors = index_of(store, self._projection)
        elif self._embedder is not None:
            from mnemos.memory.word_index import WordIndex

            self.vectors = WordIndex(store, self._embedder)
        self._router = Router(store, self.routes, model, self.vectors, self._resident)
        self.epoch = store.erase_epoch()
        self.last_recalls: deque[RecallCost] = deque(maxlen=_RECALLS_KEPT)
        self._watchers: WeakSet[Watcher] = WeakSet()
        self._guard = RLock()
        _, tail = model.template.parts("system", model.tokenizer)
        user_head, _ = model.template.parts("user", model.tokenizer)
        self._query_head = [*tail, *user_head]
        self._query_prefix: SpanKV | None = None

    def _prepare(self, store: Store, model: LanguageModel) -> None:
        """Encoder and caches: what differs between the read modes."""
        trained = model.calibration.vectors
        self._projection = None if trained is None else Projection(trained, model.config.hidden_size)
        self._embedder = embedder_of(model.calibration)
        config, dtype = model.config, model.decoder.dtype
        self.encoder = MemoryEncoder(store, model)
        self.kv_source = KVSource(store, self.encoder)
        # As the bank has them, keys have a quarter of the bytes, and kernels weigh them so.
        coded = model.decoder.reads_pages or kernels() is not None
        self.routes = RouteIndex(store.get_routes, partial(decode_route, coded=coded))
        self.pager: Pager | DevicePager
        if model.decoder.reads_pages:
            from mnemos.memory.on_device import pager_for, resident_keys_for

            self.pager = pager_for(model, self.kv_source)
            self._resident = resident_keys_for(model)
        else:
            self.pager = Pager(
                self.kv_source.read,
                lambda payload: decode_kv(payload, config, dtype, packed=True),
                read_many=self.kv_source.read_many,
            )

    def warm(self) -> None:
        """Make what the first question would have to wait for: packed weights, the sentence encoder."""
        self._read(*self.question(_ANY_WORD))
        if self._embedder is not None:
            self._embedder.query(_ANY_WORD)

    def close(self) -> None:
        """Overwrite and let go of everything held."""
        for held in self._held():
            held.drop()
        if self.vectors is not None:
            self.vectors.close()
        self._tell_watchers()

    def drop(self, namespace: str, ids: Sequence[str]) -> None:
        """Overwrite and let go of what is held of those memories, and of what was computed with them in
        view.
        """
        with self._guard:
            for memory_id in ids:
                for held in self._held():
                    held.drop(namespace, memory_id)
            if self.vectors is not None:
                self.vectors.drop(namespace, ids)
            self.epoch = self._store.erase_epoch()
        self._tell_watchers()

    def refresh(self) -> None:
        """Let go of what another process erased since the last look.

        Raises `ModelMismatchError` when the bank was given to another model meanwhile.
        """
        with self._guard:
            self.encoder.check_model()
            epoch = self._store.erase_epoch()
            if epoch == self.epoch:
                return
            for namespace, memory_id in set(chain.from_iterable(held.keys() for held in self._held())):
                try:
                    self._store.get(namespace, memory_id)
                except NotFoundError:
                    for held in self._held():
                        held.drop(namespace, memory_id)
            self.epoch = epoch

    def _held(self) -> "list[Pager | DevicePager | RouteIndex | ResidentKeys]":
        """What keeps parts of memories here."""
        held: list[Pager | DevicePager | RouteIndex | ResidentKeys] = [self.pager, self.routes]
        return held if self._resident is None else [*held, self._resident]

    def watch(self, watcher: Watcher) -> None:
        """Tell it of every erase from now on, for as long as somebody else holds it."""
        with self._guard:
            self._watchers.add(watcher)

    def _tell_watchers(self) -> None:
        with self._guard:
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher.erased()

    def encode_pending(
        self,
        namespace: str | None = None,
        *,
        on_progress: Callable[[int, int], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> int:
        """Make the traces that are missing; how many were made."""
        made = self.encoder.encode_pending(namespace, on_progress=on_progress, should_stop=should_stop)
        if made and self.vectors is not None:
            for name in self._store.namespaces() if namespace is None else [namespace]:
                self.vectors.catch_up(name)
        return made

    def new_context(self, capacity: int) -> KVCache:
        """A cache that holds the frozen prefix."""
        cache = self.model.decoder.new_cache(capacity)
        cache.load_prefix(self.encoder.prefix)
        return cache

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
        """The best memories for a query that stands alone, of those that `where` allows, best first. `now` is
        when it is asked.
        """
        context, words = self._asked(query, namespace)
        if not words:
            return []
        rank = partial(self._ranked, namespace, query, context, words, router=router, where=where, now=now)
        return _described(*self._told_apart(namespace, query, rank, limit))[:limit]

    def like(
        self,
        text: str,
        *,
        namespace: str,
        threshold: float | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> LikeMatch:
        """What of a namespace is like a text: every memory is scored, hidden ones too.

        Without a threshold, that of the model's calibration.
        """
        states = self._states(text, namespace) if text.strip() else None
        if states is None:
            raise InvalidSelectorError("`like` needs a word to go by; its text has none.")
        calibration, config = self.model.calibration, self.model.config
        group = config.heads // config.kv_heads
        return like_match(self._store, namespace, text, states, calibration, group, threshold, on_progress)

    def _searching(self) -> AbstractContextManager[None]:
        """For as long as a search takes: the index of vectors leaves the processor to it."""
        return nullcontext() if self.vectors is None else self.vectors.searching()

    def _states(self, query: str, namespace: str) -> RouteQuery | None:
        """The routing side of a query that stands alone; None when it has no words. Encodes what is new."""
        context, words = self._asked(query, namespace)
        return self._read(context, words) if words else None

    def _asked(self, query: str, namespace: str) -> tuple[KVCache, list[int]]:
        """As `question`, once what is new is encoded."""
        self.refresh()
        with suppress(BankLockedError):  # somebody else is writing: search what is encoded already
            self.encode_pending(namespace)
        return self.question(query)

    def _read(self, context: KVCache, words: Sequence[int], *, in_company: bool = False) -> RouteQuery:
        """`in_company` leaves a processor to what runs beside it, which takes as long as a small model does:
        threads that wait for each other lose more where one of them is held up than a thread brings.
        """
        threads = None
        if in_company and self.model.config.hidden_size <= _SMALL_HIDDEN:
            threads = max(torch.get_num_threads() - 1, 1)
        return route_query(
            self.model.decoder, self.model.calibration, context, words, self._projection, threads
        )

    def _embed(self, query: str, into: "Future[Tensor | None]") -> None:
        """The query's sentence vector, where there is an encoder, for whoever waits for it."""
        try:
            with one_thread():
                into.set_result(None if self._embedder is None else self._embedder.query(query))
        except BaseException as error:
            into.set_exception(error)
            raise

    def _ranked(
        self,
        namespace: str,
        query: str,
        context: KVCache,
        words: Sequence[int],
        *,
        limit: int,
        router: RouterName = "full",
        where: Condition | None = None,
        now: datetime | None = None,
    ) -> list[Scored]:
        """What the router makes of `words` (token ids of `query`) read behind `context`. While the model
        reads them, and the sentence encoder before it, the memories to be scored are looked up.
        """
        asked: Future[Tensor | None] = Future()  # the query's vector
        look = partial(self._router.look, namespace, query, asked.result, router=router, where=where, now=now)
        if self._projection is not None:  # it comes of the same states
            states = self._read(context, words)
            asked.set_result(states.vector)
            looked = look()
        else:
            with Ahead(look) as ahead:
                self._embed(query, asked)
                states = self._read(context, words, in_company=True)
                looked = ahead.result()
            states = replace(states, vector=asked.result())
        return self._router.score(
            namespace, query, states, limit=limit, router=router, where=where, now=now, looked=looked
        )

    def question(self, query: str, *, room: int = 0) -> tuple[KVCache, list[int]]:
        """The first tokens of a query that stands alone, 1,024 or half the window at most, and a context to
        route it behind with `room` tokens more than it takes.
        """
        prefix = self._query_prefix or self._make_query_prefix()
        most = min((self.model.config.max_positions - prefix.tokens) // 2, _READ_TOKENS)
        words = self.model.tokenizer.encode(query)[:most]
        context = self.model.decoder.new_cache(prefix.tokens + len(words) + room)
        context.load_prefix(prefix)
        return context, words

    def _make_query_prefix(self) -> SpanKV:
        """What stands before every query that stands alone: the frozen prefix and the head of a message."""
        context = self.new_context(self.encoder.prefix.tokens + len(self._query_head))
        self.model.decoder.prefill(self._query_head, context)
        self._query_prefix = context.snapshot(0, context.length)
        return self._query_prefix

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
        """Up to `k` memories for the message `words` (token ids of `query`) read behind `context`.

        Fewer, or none, when the scores say that little matters, unless `selective` is off. `exclude` are
        memories already in working memory; only what `where` allows is looked at. With `as_text` no KV is
        paged in: the memories are for another reader. The context is left as it was.
        """
        self.refresh()
        started = time.perf_counter()
        limit = k + len(exclude) if selective else k
        rank = partial(self._ranked, namespace, query, context, words, where=where)
        scored, known = self._told_apart(namespace, query, rank, limit)
        if selective:
            left = [each for each in scored if each.id not in exclude]
            repeats = _repeats(known.values(), query)
            left = [each for each in left if each.id not in repeats]
            scored = self._router.worth_reading(left[:k])
        described = _described(scored[:k], known)
        routed = time.perf_counter()
        if as_text:
            return Recall(readable(described), (), (), (routed - started) * 1e3, 0.0)
        memories: list[RecalledMemory] = []
        spans: list[Span] = []
        owners: list[int] = []
        tokens = 0
        mass = {found.id: found.spans for found in scored}
        before = self._reads()
        certain = fitting(described)
        with self._searching():
            read: dict[str, Sequence[Span]] = {**self.pager.page_present(namespace, certain)}
        for recalled in described:
            if recalled.memory.id not in certain:
                read |= self.pager.page_present(namespace, [recalled.memory.id])
            whole = read.get(recalled.memory.id)
            if whole is None:  # forgotten since it was routed
                continue
            block = telling_spans(whole, mass[recalled.memory.id], PAGED_TOKENS - tokens)
            if not block:
                continue
            owners += [len(memories)] * len(block)
            memories.append(recalled)
            spans += block
            tokens += sum(span.tokens for span in block)
        paged = time.perf_counter()
        recall = Recall(
            tuple(memories), tuple(spans), tuple(owners), (routed - started) * 1e3, (paged - routed) * 1e3
        )
        device, held, disk, revived = (now - then for now, then in zip(self._reads(), before, strict=True))
        self.last_recalls.append(
            RecallCost(
                memories=len(memories),
                device=device,
                host=held,
                disk=disk,
                revived=revived,
                bytes=recall.bytes,
                route_ms=recall.route_ms,
                page_ms=recall.page_ms,
            )
        )
        return recall

    @property
    def device_pool(self) -> "DevicePool | None":
        """Pages on the device that the model runs on; None on a CPU."""
        return None if isinstance(self.pager, Pager) else self.pager.pool

    def _reads(self) -> tuple[int, int, int, int]:
        """Blocks that each tier gave so far: the device, host memory, disk, the model."""
        pool = self.device_pool
        device = 0 if pool is None else pool.hits
        return device, self.pager.hits, self.kv_source.disk.reads, self.kv_source.revived.reads

    def _told_apart(
        self, namespace: str, query: str, rank: Callable[..., list[Scored]], limit: int
    ) -> tuple[list[Scored], dict[str, Memory]]:
        """The ranking, settled: `limit` memories and some to spare, as far as there are so many."""
        with self._searching():
            scored = rank(limit=limit + _SPARE)
            found = self._settled(namespace, scored, query)
            if len(found[0]) < limit and len(scored) == limit + _SPARE:  # repeats had the places of others
                found = self._settled(namespace, rank(limit=limit + _CROWD), query)
            return found

    def _settled(
        self, namespace: str, scored: Sequence[Scored], query: str
    ) -> tuple[list[Scored], dict[str, Memory]]:
        """The ranking of those that are still there, settled, and what they are."""
        records = self._store.records(namespace, [each.id for each in scored])
        known = {record.id: to_memory(record) for record in records}
        said = {each.id: Statement(_said(each), each.speaker, each.created_at) for each in known.values()}
        return settled(scored, said, query), known


def _said(memory: Memory) -> str:
    return f"{memory.text}\n{memory.reply}" if memory.reply else memory.text


def _described(scored: Sequence[Scored], known: Mapping[str, Memory]) -> list[RecalledMemory]:
    return [
        RecalledMemory(memory=known[each.id], rank=rank, score=each.score, signals=each.signals)
        for rank, each in enumerate(scored, 1)
    ]


def _repeats(found: Iterable[Memory], query: str) -> set[str]:
    """Ids of those that only say what the message says: the same question, asked before, answers nothing."""
    words = _WORD.findall(query.casefold())
    return {each.id for each in found if _WORD.findall(each.text.casefold()) == words}
