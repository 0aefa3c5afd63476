"""Hashing attention, token by token."""

from collections.abc import Callable

import torch
from torch import Tensor

from mnemos.attention.patterns.bucket_mixer import BucketMixer
from mnemos.attention.patterns.lsh import Lsh
from mnemos.attention.patterns.mixer import PADDING, Mixer
from mnemos.attention.patterns.naive.tokens import plain_slopes, turned


def mix(mixer: Mixer, x: Tensor, positions: Tensor) -> Tensor:
    """The output for `x [batch, tokens, dim]`, by the mixer's weights."""
    assert isinstance(mixer, Lsh)

    known: dict[tuple[int, int, int], tuple[Tensor, list[int]]] = {}

    def hashed(query: Tensor, head: int, round_: int) -> list[int]:
        at = (id(query), head, round_)  # its own while the tensor is kept
        if at not in known:
            known[at] = query, hash_of(mixer, query[head], round_)
        return known[at][1]

    def shown(queries: list[Tensor], head: int) -> list[int]:
        digits, last = 0, len(queries) - 1
        while mixer.width * 4**digits <= last:
            digits += 1
        found = []
        for round_ in range(mixer.rounds):
            codes = [hashed(query, head, round_)[:digits] for query in queries]
            found += [rank for rank in range(last) if codes[rank] == codes[last]][-mixer.width :]
        return found

    return mix_shown(mixer, x, positions, shown)


def hash_of(mixer: Lsh, query: Tensor, round_: int) -> list[int]:
    """The digits of a query's code in one round."""
    found = []
    for sides in torch.einsum("d,dks->ks", query.detach(), mixer.rotations[:, round_]).tolist():
        values = [*sides, *(-side for side in sides)]
        found.append(values.index(max(values)))
    return found


def mix_shown(
    mixer: BucketMixer, x: Tensor, positions: Tensor, shown: Callable[[list[Tensor], int], list[int]]
) -> Tensor:
    """Softmax over what `shown(queries, head)` lists, by rank, for the last of the queries; repeats count."""
    config, weights = mixer.config, mixer.projections
    group = config.heads // config.kv_heads
    rows = []
    for sequence, places in zip(x, positions.tolist(), strict=True):
        out = [sequence.new_zeros(config.dim)] * len(places)
        raw: list[Tensor] = []  # each [heads, head_dim]
        q: list[Tensor] = []
        k: list[Tensor] = []
        v: list[Tensor] = []
        at: list[int] = []
        for index, place in enumerate(places):
            if place == PADDING:
                continue
            query = (weights.query.weight @ sequence[index]).view(config.heads, -1)
            unit = torch.stack([one / one.norm() for one in query])
            raw.append(query)
            if config.position == "rope":
                query, unit = (turned(one, place, config.rope_theta) for one in (query, unit))
            q.append(query)
            k.append(unit)
            v.append((weights.value.weight @ sequence[index]).view(config.kv_heads, -1))
            at.append(place)
            heads, held_k, held_v = [], torch.stack(k), torch.stack(v)
            for head in range(config.heads):
                keys = shown(raw, head) or [len(at) - 1]
                products = held_k[keys, head] @ q[-1][head] / config.head_dim**0.5
                if config.position == "alibi":
                    away = products.new_tensor([place - at[key] for key in keys])
                    products = products - plain_slopes(config.heads)[head] * away
                heads.append(products.softmax(0) @ held_v[keys, head // group])
            out[index] = weights.out.weight @ torch.cat(heads)
        rows.append(torch.stack(out))
    return torch.stack(rows)
