"""Tokens one at a time: what the plain twins of the softmax patterns share."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mnemos.attention.patterns.mixer import PADDING, MixerConfig
from mnemos.attention.patterns.projections import Projections


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of one sequence that are there, in order, rotated where the positions are RoPE's."""

    indices: list[int]  # in the sequence they came in
    positions: list[int]
    q: Tensor  # [tokens, heads, head_dim]
    k: Tensor  # [tokens, heads, head_dim], each KV head as often as it is shared
    v: Tensor  # [tokens, heads, head_dim]

    def __len__(self) -> int:
        return len(self.indices)


def real_tokens(projections: Projections, x: Tensor, positions: Tensor) -> Tokens:
    """The tokens of `x [tokens, dim]` whose position in `positions [tokens]` is not `PADDING`."""
    config = projections.config
    group = config.heads // config.kv_heads
    indices = [index for index, position in enumerate(positions.tolist()) if position != PADDING]
    q, k, v = (
        torch.unflatten(x[indices] @ part.weight.T, -1, (-1, config.head_dim))
        for part in (projections.query, projections.key, projections.value)
    )
    places = positions[indices]
    if config.position == "rope":
        q, k = turned(q, places, config.rope_theta), turned(k, places, config.rope_theta)
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    return Tokens(indices, places.tolist(), q, k, v)


def turned(heads: Tensor, positions: Tensor | int, theta: float) -> Tensor:
    """RoPE by complex numbers: pair i of `[..., heads, head_dim]` by position * theta^(-2i / head_dim)."""
    dim = heads.shape[-1]
    # The angles are fp32 in the pattern, in every precision of the weights.
    frequencies = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    angles = torch.as_tensor(positions)[..., None, None] * frequencies
    turn = torch.complex(angles.cos(), angles.sin())
    pairs = torch.view_as_complex(torch.unflatten(heads, -1, (-1, 2)))
    return torch.view_as_real(pairs * turn).flatten(-2)


def scores(config: MixerConfig, tokens: Tokens, query: int, keys: list[int], head: int) -> Tensor:
    """`[keys]`: scaled products of one head, with ALiBi's penalty for distance where it is asked for."""
    products = tokens.k[keys, head] @ tokens.q[query, head] / math.sqrt(config.head_dim)
    if config.position == "alibi":
        distances = [tokens.positions[query] - tokens.positions[key] for key in keys]
        products = products - plain_slopes(config.heads)[head] * products.new_tensor(distances)
    return products


def plain_slopes(heads: int) -> list[float]:
    """The recursion of the ALiBi paper's code."""
    if math.log2(heads).is_integer():
        start = 2 ** (-(2 ** -(math.log2(heads) - 3)))
        return [start ** (i + 1) for i in range(heads)]
    nearest = 2 ** math.floor(math.log2(heads))
    return plain_slopes(nearest) + plain_slopes(2 * nearest)[0::2][: heads - nearest]


def softmax_mix(
    projections: Projections, x: Tensor, positions: Tensor, keys_of: Callable[[int, int], list[int]]
) -> Tensor:
    """Softmax attention where `keys_of(query, head)` says which tokens each head of one looks at, by rank."""

    def head_of(tokens: Tokens, query: int, head: int) -> Tensor:
        keys = keys_of(query, head)
        return scores(projections.config, tokens, query, keys, head).softmax(0) @ tokens.v[keys, head]

    return each_head(projections, x, positions, head_of)


def weighted_mix(
    projections: Projections, x: Tensor, positions: Tensor, weights_of: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """An average by `weights_of(q [head_dim], k [keys, head_dim]) -> [keys]` over all tokens up to each."""

    def head_of(tokens: Tokens, query: int, head: int) -> Tensor:
        weights = weights_of(tokens.q[query, head], tokens.k[: query + 1, head])
        return weights @ tokens.v[: query + 1, head] / weights.sum()

    return each_head(projections, x, positions, head_of)


def each_head(
    projections: Projections, x: Tensor, positions: Tensor, head_of: Callable[[Tokens, int, int], Tensor]
) -> Tensor:
    """The output by its heads, `head_of(tokens, query, head) -> [head_dim]`; padding stays zero."""
    config = projections.config
    rows = []
    for sequence, places in zip(x, positions, strict=True):
        tokens = real_tokens(projections, sequence, places)
        out = [sequence.new_zeros(config.dim)] * len(sequence)
        for query, index in enumerate(tokens.indices):
            heads = [head_of(tokens, query, head) for head in range(config.heads)]
            out[index] = projections.out.weight @ torch.cat(heads)
        rows.append(torch.stack(out))
    return torch.stack(rows)
