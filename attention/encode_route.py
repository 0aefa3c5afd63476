"""Routing keys without KV: a memory's pass through the model as far as its retrieval heads need."""

from collections.abc import Sequence

import torch

from mnemos.attention.decoder import Collect
from mnemos.attention.encode import Trace, TraceEncoder, key_pairs
from mnemos.attention.memory_codec import encode_route
from mnemos.attention.scheduling import PIECE_TOKENS, pieces


class RouteEncoder(TraceEncoder):
    """As `TraceEncoder`, but a trace has no KV: its memory is faint. Layers above the last head stay out."""

    def encode(self, parts: Sequence[Sequence[int]]) -> Trace:
        """The routing payload is to the last bit that of a whole trace. Raises ValueError without tokens."""
        keys, states = [], []
        for tokens in self.cut(parts):
            span_keys, hidden = self._look(tokens)
            keys.append(span_keys)
            states.append(hidden)
        if not keys:
            raise ValueError("a memory has at least one token")
        count = sum(span.shape[1] for span in keys)
        return Trace(count, b"", encode_route(keys, self._centred(states)))

    def _look(self, tokens: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token keys `[key_heads, tokens, head_dim]` and hidden states of one span behind the prefix."""
        calibration, config = self._calibration, self._decoder.config
        pairs = key_pairs(calibration, config.heads // config.kv_heads)
        hidden_layers = () if calibration.hidden_layer is None else (calibration.hidden_layer,)
        cache = self._decoder.new_cache(self.prefix.tokens + len(tokens))
        cache.load_prefix(self.prefix)
        states = []
        for piece in pieces(tokens, PIECE_TOKENS):  # the same ones as of a whole trace
            collect = Collect(query_layers=tuple({layer for layer, _ in pairs}), hidden_layers=hidden_layers)
            self._decoder.probe(piece, cache, collect)
            cache.advance(
                len(piece)
            )  # a probe leaves the keys of the layers it ran, and takes back the length
            states.append(collect.hidden[hidden_layers[0]] if hidden_layers else torch.empty(len(piece), 0))
        start, end = self.prefix.tokens, cache.length
        keys = torch.stack([cache.k[layer, head, start:end].float() for layer, head in pairs])
        return keys, torch.cat(states)
