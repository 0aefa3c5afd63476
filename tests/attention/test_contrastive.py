"""Training of projections: it finds what is there to be found, stops where it fits its own questions only,
and gives the same weights for the same seed.
"""

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mnemos.attention.contrastive import Haystack, Options, Query, first_rows, fit
from mnemos.attention.projection import Side, projected

HIDDEN = 32
OPTIONS = Options(dims=8, heads=2, epochs=8, batch=16, rate=5e-3, dropout=0.1)


def haystacks(count: int, seed: int, *, noise: float = 1.0) -> list[Haystack]:
    """Memories of a hidden topic in some channels, questions with the same topic in others; the rest is
    noise.
    """
    generator = torch.Generator().manual_seed(seed)
    topics = torch.randn(8, 12, generator=torch.Generator().manual_seed(99)) * 2
    turned = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(98)))[0]
    made = []
    for _ in range(count):
        order = torch.randperm(8, generator=generator).tolist()
        memories, queries = [], []
        for topic in order:
            states = torch.randn(5, HIDDEN, generator=generator) * noise
            states[:, :12] += topics[topic]
            memories.append(states)
        for place, topic in enumerate(order):
            states = torch.randn(3, HIDDEN, generator=generator) * noise
            states[:, 12:24] += topics[topic] @ turned
            queries.append(
                Query(states, (place,), tuple(at for at in range(8) if at != place), torch.zeros(8))
            )
        made.append(Haystack(tuple(memories), tuple(queries), "talk"))
    return made


def found(some: list[Haystack], query: Side, memory: Side) -> float:
    """Share of questions whose memory comes first."""
    hits: list[bool] = []
    for one in some:
        vectors = torch.stack([projected(states, memory) for states in one.memories])
        hits += [
            int((vectors @ projected(each.states, query)).argmax()) == each.gold[0] for each in one.queries
        ]
    return sum(hits) / len(hits)


def test_it_finds_on_others_what_it_was_shown() -> None:
    training, others = haystacks(40, 1), haystacks(6, 2)
    fitted = fit(training, OPTIONS, lambda query, memory: found(others, query, memory))
    before, after = fitted.epochs[0].quality, max(epoch.quality for epoch in fitted.epochs)
    assert before < 0.5 and after > 0.9 and fitted.best > 0
    assert found(others, fitted.query, fitted.memory) == pytest.approx(after)


def test_the_same_seed_gives_the_same_weights() -> None:
    training = haystacks(6, 3)
    options = replace(OPTIONS, epochs=2)

    def weights(seed: int) -> list[Tensor]:
        torch.rand(3)  # whatever was drawn before
        random.random()
        fitted = fit(training, replace(options, seed=seed), lambda query, memory: float(query.rows.sum()))
        return [fitted.query.rows, fitted.memory.rows, fitted.query.pools]

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_what_gets_worse_on_others_is_not_kept() -> None:
    qualities = iter([0.5, 0.7, 0.6, 0.1, 0.2])
    seen: list[Tensor] = []

    def quality(query: Side, memory: Side) -> float:
        seen.append(query.rows)
        return next(qualities)

    fitted = fit(haystacks(4, 5), replace(OPTIONS, epochs=4), quality)
    assert fitted.best == 1 and torch.equal(fitted.query.rows, seen[1])
    assert [epoch.quality for epoch in fitted.epochs] == [0.5, 0.7, 0.6, 0.1, 0.2]
    nothing = fit(haystacks(4, 5), replace(OPTIONS, epochs=1), lambda query, memory: 0.0)
    assert nothing.best == 0


def test_what_the_other_signals_find_needs_no_learning() -> None:
    """Where they rank every answer first already, next to nothing is left to learn."""

    def known(some: list[Haystack]) -> list[Haystack]:
        return [
            replace(one, queries=tuple(replace(q, base=20.0 * torch.eye(8)[q.gold[0]]) for q in one.queries))
            for one in some
        ]

    options = replace(OPTIONS, epochs=2, plain=0.0)
    told = fit(known(haystacks(10, 7)), options, lambda query, memory: 0.0)
    alone = fit(haystacks(10, 7), options, lambda query, memory: 0.0)
    assert told.epochs[1].loss < 0.01 < alone.epochs[1].loss


def test_rows_begin_where_texts_differ() -> None:
    rows = first_rows(haystacks(20, 6, noise=0.2), 8, 0)
    assert rows.shape == (8, HIDDEN)
    assert float(rows[:, :24].square().sum()) > 5 * float(rows[:, 24:].square().sum())
