"""The bank's memories as one model's traces: which are missing, and making them."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Lock

from mnemos.attention.embedder import Embedder, embedder_of
from mnemos.attention.encode import SPAN_TOKENS, MadeVectors, TraceEncoder, encode_prefix
from mnemos.attention.encode_route import RouteEncoder
from mnemos.attention.kv import SpanKV
from mnemos.attention.memory_codec import TraceBits, decode_kv, decode_route, encode_kv
from mnemos.attention.models import LanguageModel
from mnemos.errors import BankLockedError, ModelMismatchError, NotFoundError
from mnemos.memory.convert import to_memory
from mnemos.memory.layout import LAYOUT_VERSION, MEMORY_HEADER, render_memory, said_in
from mnemos.memory.records import Memory
from mnemos.store.records import TraceDraft
from mnemos.store.store import Store

MODEL_SETTING = "trace_fingerprint"
MODEL_NAME_SETTING = "trace_model"
_GROUP = 64  # traces made durable together
_POLL_S = 0.05
_ABANDONED_S = 900.0  # a turn open for longer was cut off by a crash
_LOOK_S = 60.0  # between two looks for such turns


class MemoryEncoder:
    """Turns memories into traces, one at a time, and keeps the frozen prefix that all of them are read
    behind.
    """

    def __init__(
        self, store: Store, model: LanguageModel, *, bits: TraceBits = 4, any_model: bool = False
    ) -> None:
        """`any_model` takes a bank over whose traces another model made; otherwise it is refused."""
        self._store = store
        self._model = model
        self._locks: dict[str | None, Lock] = {}  # by namespace, of those whose traces are being made
        self._guard = Lock()
        self._embedder: Embedder | None = None
        self._looked = -math.inf  # for turns that were cut off, by the monotonic clock
        self.fingerprint = trace_fingerprint(model)
        if not any_model:
            self.check_model()
        self._prepare(model, bits)

    def _prepare(self, model: LanguageModel, bits: TraceBits) -> None:
        """Get ready to encode: what differs between the read modes."""
        self._embedder = embedder_of(model.calibration)
        head, _ = model.template.parts("system", model.tokenizer)
        self.prefix_tokens = [*head, *model.tokenizer.encode(MEMORY_HEADER)]
        self.prefix = self._load_prefix()
        self._traces = TraceEncoder(model.decoder, model.calibration, self.prefix, bits=bits)

    def check_model(self) -> None:
        """Raises `ModelMismatchError` when the bank's traces were made by another model."""
        known = self._store.get_setting(MODEL_SETTING)
        if known is None or known == self.fingerprint:
            return
        name, model = self._store.get_setting(MODEL_NAME_SETTING) or "another model", self._model.name
        if name == model:
            raise ModelMismatchError(
                f"the memories of bank {self._store.path} were encoded by another {model} or with another "
                f"calibration ({known[:8]}, not {self.fingerprint[:8]}); use that one, or run `mnemos bank "
                f"reencode --model {model}` to make every trace again from its text"
            )
        raise ModelMismatchError(
            f"the memories of bank {self._store.path} were encoded by {name} ({known[:8]}), not by {model} "
            f"({self.fingerprint[:8]}); use --model {name}, or run `mnemos bank reencode --model {model}` to "
            "make every trace again from its text"
        )

    def lines_of(self, memory: Memory) -> list[list[int]]:
        """Token ids of each line of a memory."""
        return [self._model.tokenizer.encode(line) for line in render_memory(memory)]

    def spans_of(self, memory: Memory) -> list[Sequence[int]]:
        """Token ids of each span that a memory is encoded in, alone."""
        return self._traces.cut(self.lines_of(memory))

    def _vectors_of(self, memory: Memory) -> MadeVectors | None:
        """What the sentence encoder makes of a memory's words, where there is one."""
        if self._embedder is None:
            return None
        return self._embedder.memory(said_in(memory)), self._embedder.form

    def encode(self, memories: Sequence[Memory]) -> list[TraceDraft]:
        """Traces of memories, each made alone; nothing is written."""
        drafts = []
        for memory in memories:
            trace = self._traces.encode(self.lines_of(memory), self._vectors_of(memory))
            drafts.append(TraceDraft(memory.id, self.fingerprint, trace.tokens, trace.kv, trace.route))
        return drafts

    def encode_faint(self, memories: Sequence[Memory]) -> list[TraceDraft]:
        """As `encode`, without KV, in half of the time: the memories are faint until one is recalled.

        Raises UsageError for a model that reads pooled traces.
        """
        self._model.require_full_resolution()
        encoder = RouteEncoder(self._model.decoder, self._model.calibration, self.prefix)
        drafts = []
        for memory in memories:
            trace = encoder.encode(self.lines_of(memory), self._vectors_of(memory))
            drafts.append(TraceDraft(memory.id, self.fingerprint, trace.tokens, trace.kv, trace.route))
        return drafts

    def encode_pending(
        self,
        namespace: str | None = None,
        *,
        on_progress: Callable[[int, int], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> int:
        """Make and write every missing trace; how many were made. `should_stop()` is asked between memories.

        One thread at a time makes those of a namespace: another finds them made, or makes what is left.
        """
        if self._store.read_only:
            return 0
        is_stopped = should_stop or (lambda: False)
        with self._encoding(namespace, is_stopped) as may_go_on:
            return self._encode_all(namespace, on_progress, is_stopped) if may_go_on else 0

    @contextmanager
    def _encoding(self, namespace: str | None, is_stopped: Callable[[], bool]) -> Iterator[bool]:
        """Whether the namespace's turn to be encoded has come, and not the caller's end before it."""
        with self._guard:
            lock = self._locks.setdefault(namespace, Lock())
        while not lock.acquire(timeout=_POLL_S):
            if is_stopped():
                yield False
                return
        try:
            yield True
        finally:
            lock.release()

    def _encode_all(
        self,
        namespace: str | None,
        on_progress: Callable[[int, int], None] | None,
        is_stopped: Callable[[], bool],
    ) -> int:
        self._close_abandoned()
        pending = self._store.pending_traces(namespace, self.fingerprint)
        made = 0
        for start in range(0, len(pending), _GROUP):
            if is_stopped():
                break
            group = pending[start : start + _GROUP]
            for owner in dict.fromkeys(name for name, _ in group):
                made += self._encode_group(owner, [i for name, i in group if name == owner], is_stopped)
            if on_progress is not None:
                on_progress(min(start + _GROUP, len(pending)), len(pending))
        if made and self._store.get_setting(MODEL_SETTING) is None:
            self.adopt()
        return made

    def encode_lacking(self, on_progress: Callable[[int, int], None] | None = None) -> int:
        """Make those traces again that this model made before its router had the vectors it has now; how
        many.
        """
        vectors = self._model.calibration.vectors
        if vectors is None or self._store.read_only:
            return 0
        owned = [
            (name, each) for name in self._store.namespaces() for each in self._store.new_routes(name)[1]
        ]
        made = 0
        for start in range(0, len(owned), _GROUP):
            group = owned[start : start + _GROUP]
            for name in dict.fromkeys(owner for owner, _ in group):
                routes = self._store.get_routes(name, [each for owner, each in group if owner == name])
                lacking = [each for each, data in routes.items() if decode_route(data).form != vectors.form]
                made += self._encode_group(name, lacking, lambda: False)
            if on_progress is not None:
                on_progress(min(start + _GROUP, len(owned)), len(owned))
        return made

    def _encode_group(self, namespace: str, ids: Sequence[str], is_stopped: Callable[[], bool]) -> int:
        """Traces of those that still exist: another process may be forgetting some of them."""
        drafts: list[TraceDraft] = []
        for memory_id in ids:
            if is_stopped():
                break
            with suppress(NotFoundError):
                drafts += self.encode([to_memory(self._store.get(namespace, memory_id))])
        if not drafts:
            return 0
        try:
            self._store.put_traces(namespace, drafts)
            made = len(drafts)
        except NotFoundError:
            made = 0
            for draft in drafts:
                with suppress(NotFoundError):
                    self._store.put_traces(namespace, [draft])
                    made += 1
        with suppress(BankLockedError):  # the next ones written will see to it
            self._store.fade(namespace)
        return made

    def _close_abandoned(self) -> None:
        """Turns that a crash cut off become interrupted ones, so that their words can be recalled."""
        if time.monotonic() - self._looked < _LOOK_S:
            return
        self._looked = time.monotonic()
        for namespace, memory_id in self._store.abandoned(_ABANDONED_S):
            with suppress(NotFoundError):
                self._store.complete(namespace, memory_id, "", "interrupted", [])

    def adopt(self) -> None:
        """Make this model the one that the bank's traces belong to."""
        self._store.set_setting(MODEL_SETTING, self.fingerprint)
        self._store.set_setting(MODEL_NAME_SETTING, self._model.name)

    def _load_prefix(self) -> SpanKV:
        config, decoder = self._model.config, self._model.decoder
        stored = self._store.get_prefix(self.fingerprint)
        if stored is not None:
            return decode_kv(stored, config, decoder.dtype)[0].to(decoder.device)
        prefix = encode_prefix(decoder, self.prefix_tokens)
        if not self._store.read_only:
            self._store.put_prefix(self.fingerprint, encode_kv([prefix], 32))
        return prefix


def trace_fingerprint(model: LanguageModel) -> str:
    """Of everything a trace depends on besides the memory: weights, tokenizer, and the layout of the
    lines.
    """
    if model.config.msa is not None:
        from mnemos.memory.pooled_encoder import POOLED_LAYOUT, SEGMENT_TOKENS

        parts = [model.fingerprint, f"{POOLED_LAYOUT} {SEGMENT_TOKENS}"]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    head, _ = model.template.parts("system", model.tokenizer)
    heads = ",".join(f"{layer}.{head}" for layer, head in model.calibration.key_heads)
    hidden = f"{model.calibration.hidden_layer} {model.calibration.hidden_centre}"
    layout = f"{LAYOUT_VERSION} {SPAN_TOKENS}"
    parts = [model.fingerprint, layout, MEMORY_HEADER, repr(head), heads, hidden]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
