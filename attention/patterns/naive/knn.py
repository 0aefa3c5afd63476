"""The Memorizing Transformer, token by token."""

import torch
from torch import Tensor

from mnemos.attention.patterns.knn import Knn
from mnemos.attention.patterns.mixer import PADDING, Mixer
from mnemos.attention.patterns.naive.tokens import Tokens, each_head, scores


def mix(mixer: Mixer, x: Tensor, positions: Tensor) -> Tensor:
    """The output for `x [batch, tokens, dim]`, by the mixer's weights."""
    assert isinstance(mixer, Knn)
    rows = [_row(mixer, x[row], positions[row]) for row in range(len(x))]
    return torch.cat(rows)


def _row(mixer: Knn, x: Tensor, positions: Tensor) -> Tensor:
    config, maps = mixer.config, mixer.projections
    there = [index for index, place in enumerate(positions.tolist()) if place != PADDING]
    raw_q = [(maps.query.weight @ x[index]).view(config.heads, -1) for index in there]
    raw_k = [(maps.key.weight @ x[index]).view(config.kv_heads, -1).detach() for index in there]

    def head_of(tokens: Tokens, query: int, head: int) -> Tensor:
        start = max(query // config.window - 1, 0) * config.window
        keys = list(range(start, query + 1))
        near = scores(config, tokens, query, keys, head).softmax(0) @ tokens.v[keys, head]
        if start == 0:
            return near
        shared = head // (config.heads // config.kv_heads)
        products = torch.stack([raw_k[key][shared] @ raw_q[query][head] for key in range(start)])
        best = products.detach().argsort(descending=True)[: config.neighbours]
        weights = (products[best] / config.head_dim**0.5).softmax(0)
        share = mixer.gate[head].sigmoid()
        mixed: Tensor = (1 - share) * near + share * (weights @ tokens.v[best, head].detach())
        return mixed

    return each_head(maps, x[None], positions[None], head_of)
