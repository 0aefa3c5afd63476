"""Trains the two sides of a projection so that a query's vector comes near those of the memories that answer
it.

Two supervised contrastive losses are added. The first (InfoNCE) takes every memory of a batch that doesn't
answer a
query for a negative of it. The second takes those of the query's own conversation, most of them such as the
other signals rank high, and adds what these make of each: the vectors learn what the others don't know.
Queries with short answers come first. What is kept is the epoch that did best on conversations that had no
part.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import cos, pi

import torch
from torch import Tensor, nn
from torch.nn import functional

from mnemos.attention.projection import Side

_WARM_STEPS = 50
_SPREAD = 0.125  # of cosines among memories: a deviation of them weighs as one of the other signals
_EVERY_LENGTH = 2  # the part of the epochs, as one of so many, after which memories of any length are taken


@dataclass(frozen=True, slots=True)
class Query:
    """A query over the memories of its conversations, by index."""

    states: Tensor  # [tokens, hidden], standardised
    gold: tuple[int, ...]
    negatives: tuple[int, ...]  # those that exist and don't answer it, the most misleading first
    base: Tensor  # [memories], what the other signals make of each


@dataclass(frozen=True, slots=True)
class Haystack:
    """Memories that are searched together, and the queries put to them."""

    memories: tuple[Tensor, ...]  # of each [tokens, hidden], standardised
    queries: tuple[Query, ...]
    source: str  # batches are mixed over sources


@dataclass(frozen=True, slots=True)
class Options:
    """How to train. `decay` and `dropout` (of channels) hold it back: conversations to train on are few."""

    dims: int = 128
    heads: int = 4
    epochs: int = 4
    batch: int = 32
    candidates: int = 20  # negatives of each query from its own haystack, two thirds of them the hardest
    answers: int = 3  # of a query at most, at once
    plain: float = 0.3  # share of the first loss
    rate: float = 1e-3
    decay: float = 0.05
    dropout: float = 0.3
    temperature: float = 0.07
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Epoch:
    """How an epoch ended."""

    loss: float
    quality: float


@dataclass(frozen=True, slots=True)
class Fitted:
    """The sides of the best epoch; epoch 0 is before any training."""

    query: Side
    memory: Side
    best: int
    epochs: tuple[Epoch, ...]


class TrainedSide(nn.Module):
    """A side of the projection under training, over many texts at once."""

    def __init__(self, rows: Tensor, heads: int, dropout: float) -> None:
        """`rows [dims, hidden]` to begin with; pooling begins as a plain mean."""
        super().__init__()
        self.pools = nn.Parameter(torch.zeros(heads, rows.shape[1], device=rows.device))
        self.rows = nn.Parameter(rows.clone())
        self._dropout = dropout

    def forward(self, texts: Sequence[Tensor]) -> Tensor:
        """Vectors of length one, `[texts, dims]`."""
        device, count = self.rows.device, len(texts)
        lengths = torch.tensor([len(text) for text in texts], device=device)
        states = torch.cat(list(texts)).to(device)
        if self.training and self._dropout:
            kept = torch.rand(1, states.shape[1], device=device) >= self._dropout
            states = states * kept / (1 - self._dropout)
        owner = torch.repeat_interleave(torch.arange(count, device=device), lengths)
        looks = states @ self.pools.T  # [tokens, heads]
        heads = looks.shape[1]
        top = torch.full((count, heads), float("-inf"), device=device)
        top = top.scatter_reduce(0, owner[:, None].expand(-1, heads), looks.detach(), "amax")
        shares = (looks - top[owner]).exp()
        shares = shares / torch.zeros(count, heads, device=device).index_add(0, owner, shares)[owner]
        parts = (states @ self.rows.T).view(len(states), heads, -1) * shares[:, :, None]
        summed = torch.zeros(count, self.rows.shape[0], device=device).index_add(0, owner, parts.flatten(1))
        vectors: Tensor = functional.normalize(summed, dim=-1)
        return vectors

    def side(self) -> Side:
        """The weights as they are now."""
        pools, rows = self.pools.detach().cpu().clone(), self.rows.detach().cpu().clone()
        return Side(pools, rows.view(len(pools), -1, rows.shape[1]))


def first_rows(haystacks: Sequence[Haystack], dims: int, seed: int) -> Tensor:
    """Rows that keep most of what tells the mean states of texts apart, `[dims, hidden]`; spread over the
    heads by a rotation.
    """
    means = [memory.mean(dim=0) for one in haystacks for memory in one.memories]
    means += [query.states.mean(dim=0) for one in haystacks for query in one.queries]
    stacked = torch.stack(means)
    values, axes = torch.linalg.eigh(stacked.T @ stacked / len(stacked))
    values, axes = values.flip(0)[:dims].clamp_min(1e-8), axes.flip(1)[:, :dims]
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(dims, dims, generator=generator))[0]
    rows: Tensor = rotation @ (axes * (values / values[0]).pow(-0.25)).T
    return rows


def fit(
    haystacks: Sequence[Haystack],
    options: Options,
    quality: Callable[[Side, Side], float],
    on_epoch: Callable[[], None] | None = None,
    device: str = "cpu",
) -> Fitted:
    """Trains both sides. `quality(query side, memory side)` judges each epoch on what isn't trained on. The
    same arguments give the same weights on the same machine.
    """
    torch.manual_seed(options.seed)
    draw = random.Random(options.seed)
    rows = first_rows(haystacks, options.dims, options.seed).to(device)
    query, memory = (TrainedSide(rows, options.heads, options.dropout) for _ in range(2))
    sides = nn.ModuleList([query, memory])
    optimizer = torch.optim.AdamW(
        [
            {"params": [query.pools, memory.pools], "weight_decay": 0.0},
            {"params": [query.rows, memory.rows], "weight_decay": options.decay},
        ],
        lr=options.rate,
    )
    items = [(one, each) for one in haystacks for each in one.queries if each.gold and each.negatives]
    steps = max(1, len(items) // options.batch)
    best = Fitted(query.side(), memory.side(), 0, ())
    ended = [Epoch(0.0, quality(best.query, best.memory))]
    for number in range(1, options.epochs + 1):
        taken = _short_enough(items, number, options.epochs)
        total = 0.0
        sides.train()
        for step in range(steps):
            done = (number - 1) * steps + step
            rate = options.rate * min(1.0, (done + 1) / _WARM_STEPS)
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 + cos(pi * done / (options.epochs * steps))) / 2
            loss = _loss(query, memory, _batch(taken, options.batch, draw), options, draw)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += float(loss.detach())
        sides.eval()
        query_side, memory_side = query.side(), memory.side()
        reached = quality(query_side, memory_side)
        if reached > max(epoch.quality for epoch in ended):
            best = Fitted(query_side, memory_side, number, ())
        ended.append(Epoch(total / steps, reached))
        if on_epoch is not None:
            on_epoch()
    return Fitted(best.query, best.memory, best.best, tuple(ended))


Item = tuple[Haystack, Query]


def _short_enough(items: Sequence[Item], number: int, epochs: int) -> list[Item]:
    """Short to long: half of the items in the first epoch, all from the middle on."""
    lengths = sorted(_tokens(item) for item in items)
    share = min(1.0, 0.5 + 0.5 * (number - 1) * _EVERY_LENGTH / max(1, epochs))
    longest = lengths[min(len(lengths) - 1, int(share * len(lengths)))]
    return [item for item in items if _tokens(item) <= longest]


def _tokens(item: Item) -> int:
    return min(len(item[0].memories[index]) for index in item[1].gold)


def _batch(items: Sequence[Item], size: int, draw: random.Random) -> list[Item]:
    """Items of every source, by the root of how many it has."""
    sources = sorted({one.source for one, _ in items})
    by_source = [[item for item in items if item[0].source == name] for name in sources]
    weights = [len(some) ** 0.5 for some in by_source]
    return [draw.choice(some) for some in draw.choices(by_source, weights, k=size)]


def _loss(
    query: TrainedSide, memory: TrainedSide, batch: Sequence[Item], options: Options, draw: random.Random
) -> Tensor:
    columns: dict[tuple[int, int], int] = {}
    texts: list[Tensor] = []

    def column(haystack: Haystack, index: int) -> int:
        key = (id(haystack), index)
        if key not in columns:
            columns[key] = len(texts)
            texts.append(haystack.memories[index])
        return columns[key]

    targets = [column(one, draw.choice(each.gold)) for one, each in batch]
    own: list[tuple[list[int], Tensor, int]] = []  # of each query: columns, base scores, how many answer it
    for one, each in batch:
        most = options.candidates * 2 // 3
        hard, others = each.negatives[:most], each.negatives[most:]
        picked = draw.sample(each.gold, min(len(each.gold), options.answers))
        places = [*picked, *hard, *draw.sample(others, min(len(others), options.candidates - len(hard)))]
        own.append(([column(one, index) for index in places], each.base[places], len(picked)))
    cosines = query([each.states for _, each in batch]) @ memory(texts).T
    scores = cosines / options.temperature
    mask = torch.zeros_like(scores)
    for row, (one, each) in enumerate(batch):
        for index in each.gold:  # another answer is no negative
            place = columns.get((id(one), index))
            if place is not None and place != targets[row]:
                mask[row, place] = float("-inf")
    plain = functional.cross_entropy(scores + mask, torch.tensor(targets, device=scores.device))
    beside = torch.zeros((), device=scores.device)
    for row, (places, base, answers) in enumerate(own):
        fused = base.to(scores.device) + cosines[row, places] / _SPREAD
        beside = beside - fused.log_softmax(dim=0)[:answers].logsumexp(dim=0)
    return options.plain * plain + beside / len(own)
