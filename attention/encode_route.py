"""Routing keys without KV: a memory's pass through the model as far as its retrieval heads need."""

from collections.abc import Sequence

import torch

from mnemos.attention.decoder import Collect
from mnemos.attention.encode import MadeVectors, Trace, TraceEncoder, key_pairs
from mnemos.attention.scheduling import PIECE_TOKENS, pieces


class RouteEncoder(TraceEncoder):
    """As `TraceEncoder`, but a trace has no KV: its memory is faint. Layers above the last head stay out."""

    def encode(self, parts: Sequence[Sequence[int]], made: MadeVectors | None = None) -> Trace:
        """The routing payload is to the last bit that of a whole trace. Raises ValueError without tokens."""
        keys, hidden, projected = [], [], []
        for tokens in self.cut(parts):
            span_keys, states = self._look(tokens)
            keys.append(span_keys)
            hidden.append(self._states(states, len(tokens)))
            if self._projection is not None:
                projected.append(states[self._projection.layer])
        if not keys:
            raise ValueError("a memory has at least one token")
        count = sum(span.shape[1] for span in keys)
        return Trace(count, b"", self._route(keys, hidden, projected, made))

    def _look(self, tokens: Sequence[int]) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """Token keys `[key_heads, tokens, head_dim]` of one span behind the prefix, and the input of each
        layer that something is made of.
        """
        calibration, config = self._calibration, self._decoder.config
        pairs = key_pairs(calibration, config.heads // config.kv_heads)
        layers = self._read_layers()
        cache = self._decoder.new_cache(self.prefix.tokens + len(tokens))
        cache.load_prefix(self.prefix)
        read = []
        for piece in pieces(tokens, PIECE_TOKENS):  # the same ones as of a whole trace
            read.append(Collect(query_layers=tuple({layer for layer, _ in pairs}), hidden_layers=layers))
            self._decoder.probe(piece, cache, read[-1])
            cache.advance(len(piece))  # a probe leaves the keys of the layers it ran, not the length
        start, end = self.prefix.tokens, cache.length
        keys = torch.stack([cache.k[layer, head, start:end].float() for layer, head in pairs])
        return keys, {layer: torch.cat([each.hidden[layer] for each in read]) for layer in layers}
