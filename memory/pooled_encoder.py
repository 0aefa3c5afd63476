"""The bank's memories as pooled traces of an MSA checkpoint, and the numbers that it names them by."""

import hashlib
from collections.abc import Sequence

import torch

from mnemos.attention.encode import Trace
from mnemos.attention.interleave import MsaTokens
from mnemos.attention.kv import SpanKV
from mnemos.attention.memory_codec import TraceBits
from mnemos.attention.models import LanguageModel
from mnemos.attention.pooled import encode_document, msa_of
from mnemos.attention.pooled_codec import PooledBits, encode_pooled_kv, encode_pooled_route
from mnemos.memory.encoder import MemoryEncoder
from mnemos.memory.layout import LAYOUT_VERSION, render_memory
from mnemos.memory.records import Memory
from mnemos.store.records import TraceDraft
from mnemos.store.store import Store

POOLED_LAYOUT = f"pooled 1, lines {LAYOUT_VERSION}"  # part of every pooled trace's fingerprint
SEGMENT_TOKENS = 2048  # a longer memory is encoded in segments of at most this many tokens, each alone
_NUMBERS = 100_000


def number_of(memory_id: str) -> int:
    """The number that the model names a memory by.

    It follows from the id alone: a running number would remember what was erased. Where two memories share
    one, both texts answer to it.
    """
    return int.from_bytes(hashlib.sha256(memory_id.encode()).digest()[:8]) % _NUMBERS


def document_text(memory: Memory) -> str:
    """A memory's text as the model reads it, pooled and appended alike."""
    return "".join(render_memory(memory)).strip()


class PooledEncoder(MemoryEncoder):
    """As `MemoryEncoder`, for a checkpoint with an `msa_config`. Its prefix is how the template begins."""

    def _prepare(self, model: LanguageModel, bits: TraceBits) -> None:
        self._words = MsaTokens(model.tokenizer)
        self._bits: PooledBits = 32 if bits == 32 else 16
        self.prefix_tokens = self._words.template
        self.prefix = self._load_prefix()

    def lines_of(self, memory: Memory) -> list[list[int]]:
        """The memory as one document with its number."""
        return [self._words.document(number_of(memory.id), document_text(memory))]

    def spans_of(self, memory: Memory) -> list[Sequence[int]]:
        return self._segments(self.lines_of(memory)[0])

    def encode(self, memories: Sequence[Memory]) -> list[TraceDraft]:
        drafts = []
        for memory in memories:
            trace = self._pooled(self.lines_of(memory)[0])
            drafts.append(TraceDraft(memory.id, self.fingerprint, trace.tokens, trace.kv, trace.route))
        return drafts

    def _pooled(self, tokens: Sequence[int]) -> Trace:
        decoder = self._model.decoder
        parts = [encode_document(decoder, segment) for segment in self._segments(tokens)]
        span = SpanKV(*(torch.cat([getattr(part.kv, name) for part in parts], dim=2) for name in ("k", "v")))
        keys = torch.cat([part.keys for part in parts], dim=2)
        msa = msa_of(decoder)
        return Trace(
            len(tokens), encode_pooled_kv(span, msa, self._bits), encode_pooled_route(keys, msa, self._bits)
        )

    def _segments(self, tokens: Sequence[int]) -> list[Sequence[int]]:
        longest = min(SEGMENT_TOKENS, self._model.decoder.config.max_positions)
        return [tokens[start : start + longest] for start in range(0, len(tokens), longest)]


def encoder_for(
    store: Store, model: LanguageModel, *, bits: TraceBits = 4, any_model: bool = False
) -> MemoryEncoder:
    """The encoder of a model's read mode; the arguments are those of `MemoryEncoder`."""
    kind = MemoryEncoder if model.config.msa is None else PooledEncoder
    return kind(store, model, bits=bits, any_model=any_model)
