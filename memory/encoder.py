"""The bank's memories as one model's traces: which are missing, and making them."""

import hashlib
from collections.abc import Callable, Sequence

from mnemos.attention.encode import TraceEncoder, encode_prefix
from mnemos.attention.kv import SpanKV
from mnemos.attention.memory_codec import TraceBits, decode_kv, encode_kv
from mnemos.attention.models import LanguageModel
from mnemos.errors import ModelMismatchError
from mnemos.memory.convert import to_memory
from mnemos.memory.layout import LAYOUT_VERSION, MEMORY_HEADER, render_memory
from mnemos.memory.records import Memory
from mnemos.store.records import TraceDraft
from mnemos.store.store import Store

MODEL_SETTING = "trace_fingerprint"
MODEL_NAME_SETTING = "trace_model"
_GROUP = 16  # traces made durable together


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
        self.fingerprint = trace_fingerprint(model)
        if not any_model:
            _check_model(store, model, self.fingerprint)
        head, _ = model.template.parts("system", model.tokenizer)
        self.prefix_tokens = [*head, *model.tokenizer.encode(MEMORY_HEADER)]
        self.prefix = self._load_prefix()
        self._traces = TraceEncoder(model.decoder, model.calibration, self.prefix, bits=bits)

    def lines_of(self, memory: Memory) -> list[list[int]]:
        """Token ids of each line of a memory."""
        return [self._model.tokenizer.encode(line) for line in render_memory(memory)]

    def encode(self, memories: Sequence[Memory]) -> list[TraceDraft]:
        """Traces of memories, each made alone; nothing is written."""
        drafts = []
        for memory in memories:
            trace = self._traces.encode(self.lines_of(memory))
            drafts.append(TraceDraft(memory.id, self.fingerprint, trace.tokens, trace.kv, trace.route))
        return drafts

    def encode_pending(
        self, namespace: str | None = None, *, on_progress: Callable[[int, int], None] | None = None
    ) -> int:
        """Make and write every missing trace; how many were made."""
        if self._store.read_only:
            return 0
        pending = self._store.pending_traces(namespace, self.fingerprint)
        for start in range(0, len(pending), _GROUP):
            group = pending[start : start + _GROUP]
            for owner in dict.fromkeys(name for name, _ in group):
                memories = [to_memory(self._store.get(owner, i)) for name, i in group if name == owner]
                self._store.put_traces(owner, self.encode(memories))
            if on_progress is not None:
                on_progress(min(start + _GROUP, len(pending)), len(pending))
        if pending and self._store.get_setting(MODEL_SETTING) is None:
            self.adopt()
        return len(pending)

    def adopt(self) -> None:
        """Make this model the one that the bank's traces belong to."""
        self._store.set_setting(MODEL_SETTING, self.fingerprint)
        self._store.set_setting(MODEL_NAME_SETTING, self._model.name)

    def _load_prefix(self) -> SpanKV:
        config, decoder = self._model.config, self._model.decoder
        stored = self._store.get_prefix(self.fingerprint)
        if stored is not None:
            return decode_kv(stored, config, decoder.dtype)[0]
        prefix = encode_prefix(decoder, self.prefix_tokens)
        if not self._store.read_only:
            self._store.put_prefix(self.fingerprint, encode_kv([prefix], 32))
        return prefix


def trace_fingerprint(model: LanguageModel) -> str:
    """Of everything a trace depends on besides the memory: weights, tokenizer, and the layout of the
    lines.
    """
    head, _ = model.template.parts("system", model.tokenizer)
    heads = ",".join(f"{layer}.{head}" for layer, head in model.calibration.key_heads)
    parts = [model.fingerprint, str(LAYOUT_VERSION), MEMORY_HEADER, repr(head), heads]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _check_model(store: Store, model: LanguageModel, fingerprint: str) -> None:
    known = store.get_setting(MODEL_SETTING)
    if known is not None and known != fingerprint:
        name = store.get_setting(MODEL_NAME_SETTING) or "another model"
        raise ModelMismatchError(
            f"the memories of bank {store.path} were encoded by {name} ({known[:8]}), not by {model.name} "
            f"({fingerprint[:8]}); use --model {name}, or run `mnemos bank reencode --model {model.name}` to "
            "make every trace again from its text"
        )
