"""What is chosen from what heads see: planted signals are found, and what only looks good on few is not."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from mnemos.memory import calibrating_fit as fit
from mnemos.memory.calibrating import choose_ways
from mnemos.memory.calibrating_capture import Probe
from mnemos.memory.calibrating_fit import Ways

HEADS, LAYERS, WIDTH = 12, 2, 8
OWNERS = [head // 2 for head in range(HEADS)]  # two heads a KV head


def probe(
    generator: torch.Generator,
    *,
    memories: int = 40,
    gold: int = 1,
    seeing: dict[int, float] | None = None,
    lexical: float = 0.0,
    hidden: float = 0.0,
    fold: int = 0,
    file: str = "f",
) -> Probe:
    """A question whose signals are noise but for the `seeing` heads, words and the last hidden layer."""
    is_gold = torch.zeros(memories, dtype=torch.bool)
    is_gold[torch.randperm(memories, generator=generator)[:gold]] = True
    logits = torch.randn(HEADS, memories, generator=generator)
    for head, strength in (seeing or {}).items():
        logits[head] += strength * is_gold
    query = torch.randn(LAYERS, WIDTH, generator=generator)
    means = torch.randn(LAYERS, memories, WIDTH, generator=generator) + 3.0
    means[-1] += hidden * query[-1] * is_gold[:, None]
    nobody = torch.full((memories,), memories)
    words = torch.rand(memories, generator=generator) + lexical * is_gold
    return Probe(
        file=file,
        fold=fold,
        mass=torch.softmax(logits, dim=-1),
        unrelated=torch.softmax(torch.randn(HEADS, memories, generator=generator), dim=-1),
        lexical=words,
        speaker=torch.zeros(memories),
        before=nobody,
        after=nobody,
        gold=is_gold,
        means=means,
        visible=torch.arange(memories),
        query=query + 3.0,
    )


def probes(count: int = 40, seed: int = 3, **changes: object) -> list[Probe]:
    generator = torch.Generator().manual_seed(seed)
    return [probe(generator, fold=at % 6, **changes) for at in range(count)]  # type: ignore[arg-type]


def naive_quality(scores: list[float], gold: list[bool]) -> float:
    ranks = []
    for at, is_gold in enumerate(gold):
        if is_gold:
            above = sum(score > scores[at] for score in scores)
            equal = sum(score == scores[at] for score in scores) - 1
            ranks.append(1 + above + equal / 2)
    ideal = sum(1 / math.log2(1 + place) for place in range(1, len(ranks) + 1))
    first = min(sum(rank <= 10 for rank in ranks), 10) / min(10, len(ranks))
    return (sum(1 / math.log2(1 + rank) for rank in ranks) / ideal + first) / 2


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=30))
@example([(0, False), *[(0, True)] * 9, (1, True)])  # eleven gold ones, ten of them of one middle rank
def test_quality_is_what_it_says(rows: list[tuple[int, bool]]) -> None:
    rows = [(rows[0][0], True), *rows[1:]]
    scores, gold = [float(score) for score, _ in rows], [is_gold for _, is_gold in rows]
    found = fit.quality(torch.tensor(scores), torch.tensor(gold))
    assert float(found) == pytest.approx(naive_quality(scores, gold), abs=1e-5)
    assert 0 < float(found) <= 1 + 1e-6


def test_the_planted_heads_are_found() -> None:
    some = probes(seeing={4: 2.0, 5: 2.0, 9: 2.0})
    chosen = fit.choose_heads(some, OWNERS, fit.START_WEIGHTS)
    assert set(chosen) == {4, 5, 9}
    better, alone = (
        fit.score(some, Ways(chosen, fit.START_WEIGHTS)),
        fit.score(some, Ways((4,), fit.START_WEIGHTS)),
    )
    assert better > alone + 0.05
    assert chosen == fit.choose_heads(some, OWNERS, fit.START_WEIGHTS)


def test_at_most_two_kv_heads_are_read() -> None:
    some = probes(seeing={1: 2.0, 4: 2.0, 9: 2.0, 11: 2.0})
    chosen = fit.choose_heads(some, OWNERS, fit.START_WEIGHTS)
    assert len({OWNERS[head] for head in chosen}) == fit.MOST_KV_HEADS
    assert len(chosen) <= fit.MOST_HEADS and set(chosen) & {1, 4, 9, 11}
    one_kv = fit.choose_heads(some, [0] * HEADS, fit.START_WEIGHTS)
    assert set(one_kv) == {1, 4, 9, 11}


def test_weights_follow_what_tells_gold_apart() -> None:
    worded = probes(lexical=1.0)
    weights = fit.choose_weights(worded, Ways((0,), fit.START_WEIGHTS))
    assert weights["lexical"] == 1.0 and weights["mass"] < 0.5
    seen = probes(seeing={3: 4.0})
    weights = fit.choose_weights(
        seen, Ways((3,), {"lexical": 1.0, "mass": 0.5, "speaker": 0.5, "neighbours": 0.2})
    )
    assert weights["mass"] == 1.0 and weights["lexical"] < 0.5
    before = Ways((3,), fit.START_WEIGHTS)
    assert fit.score(seen, Ways((3,), weights)) >= fit.score(seen, before)


def test_a_hidden_layer_stays_only_where_it_adds_on_conversations_left_out() -> None:
    ways = Ways((3,), fit.START_WEIGHTS)
    noise = fit.choose_hidden(probes(12, seeing={3: 2.0}), ways)
    assert noise == ways
    helped = fit.choose_hidden(probes(36, seeing={3: 0.5}, hidden=2.0), ways)
    assert helped.hidden == LAYERS - 1 and helped.weights["hidden"] > 0
    assert helped.centre is not None and torch.allclose(helped.centre, torch.full((WIDTH,), 3.0), atol=0.5)
    single = probes(12, seeing={3: 0.5}, hidden=2.0)
    for one in single:
        one.fold = 0
    assert fit.choose_hidden(single, ways) == ways  # nothing was left out: nothing is known


def test_files_count_alike() -> None:
    generator = torch.Generator().manual_seed(5)
    easy = [probe(generator, seeing={0: 9.0}, file="easy") for _ in range(30)]
    hard = [probe(generator, file="hard") for _ in range(3)]
    ways = Ways((0,), {"mass": 1.0})
    values = [fit.score(some, ways) for some in (easy, hard)]
    assert fit.score([*easy, *hard], ways) == pytest.approx(sum(values) / 2, abs=1e-5)
    shown = fit.measured([*easy, *hard], ways)
    assert set(shown) == {"easy", "hard", "mean"} and shown["easy"]["1"] == 1.0
    assert shown["mean"]["10"] == pytest.approx((shown["easy"]["10"] + shown["hard"]["10"]) / 2, abs=1e-3)


def test_the_threshold_lets_few_unrelated_messages_through() -> None:
    some = probes(60)
    threshold, found = fit.choose_threshold(some, (0, 1))
    top = [standing(each.unrelated, (0, 1)) for each in some if each.unrelated is not None]
    assert found == {"messages": 60, "over": pytest.approx(sum(z >= threshold for z in top) / 60, abs=1e-4)}
    assert found["over"] <= 0.1 and 2.0 <= threshold < max(top) + 0.2
    assert fit.choose_threshold(some[:5], (0, 1))[0] == fit.DEFAULT_THRESHOLD
    for each in some:
        each.unrelated = None
    assert fit.choose_threshold(some, (0,)) == (fit.DEFAULT_THRESHOLD, {"messages": 0, "over": 0.0})


def standing(mass: Tensor, heads: tuple[int, ...]) -> float:
    logs = mass[list(heads)].mean(dim=0).log()
    return float((logs.max() - logs.mean()) / logs.std())


def test_all_of_it_beats_words_alone_where_heads_see() -> None:
    some = probes(30, seeing={6: 3.0, 7: 3.0}, lexical=0.3)
    ways = choose_ways(some, [(0, owner) for owner in OWNERS])
    assert {6, 7} & set(ways.heads)
    assert fit.score(some, ways) > fit.score(some, Ways((), {"lexical": 1.0})) + 0.1


def test_the_vectors_count_where_they_tell_the_gold_and_not_where_they_are_noise() -> None:
    generator = torch.Generator().manual_seed(8)
    told, noise = probes(seeing={2: 1.5}), probes(seeing={2: 1.5})
    for each in told:
        each.vector = torch.randn(len(each.gold), generator=generator) + 3.0 * each.gold
    for each in noise:
        each.vector = torch.randn(len(each.gold), generator=generator)
    plain = fit.choose_weights(probes(seeing={2: 1.5}), Ways((2,), fit.START_WEIGHTS))
    assert "vector" not in plain
    weights = fit.choose_weights(told, Ways((2,), fit.START_WEIGHTS))
    assert weights["vector"] >= 0.5 * max(weights["lexical"], weights["mass"])
    assert (
        fit.score(told, Ways((2,), weights)) > fit.score(told, Ways((2,), {**weights, "vector": 0.0})) + 0.1
    )
    assert fit.choose_weights(noise, Ways((2,), fit.START_WEIGHTS)).get("vector", 0.0) <= 0.25
