"""Memory Sparse Attention, document by document and token by token."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mnemos.attention.patterns.mixer import PADDING, Mixer
from mnemos.attention.patterns.msa import Msa
from mnemos.attention.patterns.naive.tokens import plain_slopes, turned


@dataclass(frozen=True, slots=True)
class PlainDocument:
    """One document: K and V of its tokens, each KV head as often as it is shared, and their means."""

    indices: list[int]
    local: list[int]
    q: list[Tensor]  # each [heads, head_dim]
    k: list[Tensor]
    v: list[Tensor]
    chunk_k: list[Tensor]  # each [heads, head_dim], as seen by a question that starts at 0
    chunk_v: list[Tensor]
    chunk_keys: list[Tensor]


def mix(mixer: Mixer, x: Tensor, positions: Tensor) -> Tensor:
    """The output for `x [batch, tokens, dim]`, by the mixer's weights."""
    return mix_routed(mixer, x, positions)[0]


def mix_routed(mixer: Mixer, x: Tensor, positions: Tensor) -> tuple[Tensor, list[list[Tensor]]]:
    """The output, and for each sequence the score of each document before the last."""
    assert isinstance(mixer, Msa)
    rows, all_scores = [], []
    for sequence, places in zip(x, positions.tolist(), strict=True):
        documents = [
            encode(mixer, sequence, places, indices) for indices in cut(places, mixer.config.document)
        ]
        out = dict.fromkeys(range(len(places)), sequence.new_zeros(mixer.config.dim))
        scores: list[Tensor] = []
        for number, document in enumerate(documents):
            reads = mixer.every or document is documents[-1]
            earlier = documents[:number] if reads else []
            scores = [sequence.new_tensor(-torch.inf)] * len(earlier)
            for rank, index in enumerate(document.indices):
                found = [route(mixer, sequence[index], other) for other in earlier]
                scores = [torch.maximum(*pair) for pair in zip(scores, found, strict=True)]
                values = [float(score.detach()) for score in scores]
                best = sorted(range(len(earlier)), key=values.__getitem__, reverse=True)[: mixer.config.top_k]
                out[index] = attend_one(mixer, document, rank, [earlier[n] for n in best])
        rows.append(torch.stack(list(out.values())))
        all_scores.append(scores)
    return torch.stack(rows), all_scores


def cut(places: list[int], longest: int) -> list[list[int]]:
    """The tokens of each document of one sequence."""
    documents: list[list[int]] = []
    for index, place in enumerate(places):
        if place == PADDING:
            continue
        if not documents or place <= places[documents[-1][-1]] or len(documents[-1]) == longest:
            documents.append([])
        documents[-1].append(index)
    return documents


def encode(mixer: Msa, sequence: Tensor, places: list[int], indices: list[int]) -> PlainDocument:
    """The tokens `indices` of one sequence as a document."""
    config, weights = mixer.config, mixer.projections
    group = config.heads // config.kv_heads
    local = [places[index] - places[indices[0]] for index in indices]

    def turn(heads: Tensor, position: int) -> Tensor:
        return turned(heads, position, config.rope_theta) if config.position == "rope" else heads

    def shared(row: Tensor) -> Tensor:
        return row.view(config.kv_heads, config.head_dim).repeat_interleave(group, 0)

    q, k, v, raw = [], [], [], []
    for index, position in zip(indices, local, strict=True):
        token = sequence[index]
        q.append(turn((weights.query.weight @ token).view(config.heads, config.head_dim), position))
        k.append(turn(shared(weights.key.weight @ token), position))
        v.append(shared(weights.value.weight @ token))
        raw.append(shared(weights.router_key.weight @ token))
    chunks = [slice(start, start + config.pool) for start in range(0, len(indices), config.pool)]

    def means(states: list[Tensor]) -> list[Tensor]:
        return [torch.stack(states[chunk]).mean(0) for chunk in chunks]

    # A question that starts at top_k sees the same as one that starts at 0 behind keys turned back by it.
    back = [turn(mean, -config.top_k) for mean in means(k)]
    return PlainDocument(indices, local, q, k, v, back, means(v), means(raw))


def route(mixer: Msa, token: Tensor, document: PlainDocument) -> Tensor:
    """The score of a document for one token `[dim]`."""
    heads = range(mixer.config.heads)
    query = (mixer.projections.router_query.weight @ token).view(len(heads), -1)
    chunks = [torch.stack([cosine(query[h], key[h]) for h in heads]).mean() for key in document.chunk_keys]
    best: Tensor = torch.stack(chunks).max()
    return best


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Of two vectors."""
    angle: Tensor = (a @ b) / (a.norm() * b.norm())
    return angle


def attend_one(mixer: Msa, document: PlainDocument, rank: int, read: list[PlainDocument]) -> Tensor:
    """The output of one token."""
    config, q = mixer.config, document.q[rank]
    k = torch.stack([*document.k[: rank + 1], *(key for other in read for key in other.chunk_k)])
    v = torch.stack([*document.v[: rank + 1], *(value for other in read for value in other.chunk_v)])
    heads = []
    for head in range(config.heads):
        products = k[:, head] @ q[head] / config.head_dim**0.5
        if config.position == "alibi":
            distance = [document.local[rank] - place for place in document.local[: rank + 1]]
            distance += [document.local[rank]] * (len(k) - rank - 1)
            products = products - plain_slopes(config.heads)[head] * products.new_tensor(distance)
        heads.append(products.softmax(0) @ v[:, head])
    out: Tensor = mixer.projections.out.weight @ torch.cat(heads)
    return out
