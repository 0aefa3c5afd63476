"""Memories to traces: each text runs through the model alone, behind the frozen prefix."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mnemos.attention.calibration import Calibration
from mnemos.attention.decoder import Collect, Decoder
from mnemos.attention.kv import SpanKV
from mnemos.attention.memory_codec import TraceBits, encode_kv, encode_route
from mnemos.attention.projection import Projection
from mnemos.attention.scheduling import PIECE_TOKENS, pieces
from mnemos.errors import ContextOverflowError

SPAN_TOKENS = 512  # a longer memory is encoded in spans of at most this many tokens, each alone


MadeVectors = tuple[Tensor, str]  # [vectors, dims] in int8, and their form


@dataclass(frozen=True, slots=True)
class Trace:
    """What the model keeps of one memory, as bytes for the bank."""

    tokens: int
    kv: bytes
    route: bytes


class TraceEncoder:
    """Encodes token sequences one at a time, so that a trace depends on its own memory and nothing else."""

    def __init__(
        self, decoder: Decoder, calibration: Calibration, prefix: SpanKV, *, bits: TraceBits = 4
    ) -> None:
        """Raises ContextOverflowError when the model's window has no room behind the prefix."""
        self._decoder = decoder
        self._calibration = calibration
        self._bits = bits
        self.prefix = prefix
        vectors = calibration.vectors
        self._projection = None if vectors is None else Projection(vectors, decoder.config.hidden_size)
        # A short window keeps half of its positions for what is read behind the memories.
        room = decoder.config.max_positions // 2 - prefix.tokens
        self.span_tokens = min(SPAN_TOKENS, room)
        if self.span_tokens < 1:
            raise ContextOverflowError(
                f"model {decoder.config.name}: its window of {decoder.config.max_positions} tokens is too "
                f"short for memories behind a prefix of {prefix.tokens}; use a model with a longer window"
            )

    def encode(self, parts: Sequence[Sequence[int]], made: MadeVectors | None = None) -> Trace:
        """One memory's tokens to its trace: each part a span of its own, long ones several. `made` are
        vectors of the memory that are kept beside its keys.

        Raises ValueError when there are no tokens.
        """
        spans, hidden, projected = [], [], []
        for tokens in self.cut(parts):
            span, collected = self._read(tokens)
            spans.append(span)
            hidden.append(self._states(collected, len(tokens)))
            if self._projection is not None:
                projected.append(collected[self._projection.layer])
        if not spans:
            raise ValueError("a memory has at least one token")
        keys = [self.route_keys(span) for span in spans]
        count = sum(span.tokens for span in spans)
        return Trace(count, encode_kv(spans, self._bits), self._route(keys, hidden, projected, made))

    def _route(
        self,
        keys: Sequence[Tensor],
        hidden: Sequence[Tensor],
        projected: Sequence[Tensor],
        made: MadeVectors | None,
    ) -> bytes:
        """The routing payload, of what each span gave: keys, hidden states, and those that are projected."""
        vectors, form = made or (None, "")
        if self._projection is not None:
            vectors, form = self._projection.memory(projected), self._projection.form
        return encode_route(keys, self._centred(hidden), vectors, form)

    def cut(self, parts: Sequence[Sequence[int]]) -> list[Sequence[int]]:
        """The tokens of each span."""
        return [
            tokens[start : start + self.span_tokens]
            for tokens in parts
            for start in range(0, len(tokens), self.span_tokens)
        ]

    def encode_span(self, tokens: Sequence[int]) -> tuple[SpanKV, Tensor]:
        """KV of one span behind the prefix, and its hidden states `[tokens, hidden]` (empty if not
        calibrated).
        """
        span, collected = self._read(tokens)
        return span, self._states(collected, len(tokens))

    def _read(self, tokens: Sequence[int]) -> tuple[SpanKV, dict[int, Tensor]]:
        """KV of one span, and the input `[tokens, hidden]` of each layer that something is made of."""
        layers = self._read_layers()
        cache = self._decoder.new_cache(self.prefix.tokens + len(tokens))
        cache.load_prefix(self.prefix)
        read: list[Collect] = []
        for piece in pieces(tokens, PIECE_TOKENS):  # always the same ones, whoever else uses the model
            read.append(Collect(hidden_layers=layers))
            self._decoder.prefill(piece, cache, collect=read[-1])
        states = {layer: torch.cat([each.hidden[layer] for each in read]) for layer in layers}
        return cache.snapshot(self.prefix.tokens, cache.length), states

    def _read_layers(self) -> tuple[int, ...]:
        """Layers whose input something is made of."""
        hidden = self._calibration.hidden_layer
        of_projection = None if self._projection is None else self._projection.layer
        return tuple(layer for layer in (hidden, of_projection) if layer is not None)

    def _states(self, collected: dict[int, Tensor], tokens: int) -> Tensor:
        layer = self._calibration.hidden_layer
        return torch.empty(tokens, 0) if layer is None else collected[layer]

    def route_keys(self, span: SpanKV) -> Tensor:
        """Token keys of the KV heads that the retrieval heads read, `[key_heads, tokens, head_dim]` in
        fp32.
        """
        pairs = key_pairs(self._calibration, self._decoder.config.heads // self._decoder.config.kv_heads)
        return torch.stack([span.k[layer, head].float() for layer, head in pairs])

    def _centred(self, hidden: Sequence[Tensor]) -> Tensor:
        mean = torch.cat(list(hidden)).mean(dim=0)
        centre = self._calibration.hidden_centre
        return mean - torch.tensor(centre) if centre else mean


def encode_prefix(decoder: Decoder, tokens: Sequence[int]) -> SpanKV:
    """KV of the frozen prefix that every memory is encoded behind, in the compute dtype."""
    cache = decoder.new_cache(len(tokens))
    decoder.prefill(tokens, cache)
    return cache.snapshot(0, cache.length)


def key_pairs(calibration: Calibration, group: int) -> list[tuple[int, int]]:
    """The distinct (layer, KV head) pairs behind the retrieval heads, in order of first mention."""
    return list(dict.fromkeys((layer, head // group) for layer, head in calibration.key_heads))
