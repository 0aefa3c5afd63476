"""Hashing attention: buckets, rounds and levels.

reformer-pytorch is no reference here: it can't be imported without four more packages that it makes no use of
for this, and what its chunks hold depends on later tokens, so no settings make the two the same.
"""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mnemos.attention.patterns.bucketed import attend_counted, attend_in_buckets, merge_rounds
from mnemos.attention.patterns.lsh import Lsh
from mnemos.attention.patterns.mixer import MixerConfig


def _mixer(**sizes: object) -> Lsh:
    torch.manual_seed(0)
    fixed = {"dim": 16, "heads": 2, "kv_heads": 1, "head_dim": 8, "bucket": 4, "hash_rounds": 3}
    return Lsh(MixerConfig(**{**fixed, **sizes}))


def _by_hand(q: Tensor, k: Tensor, v: Tensor, buckets: Tensor, width: int) -> tuple[Tensor, Tensor]:
    outs, totals = torch.zeros_like(v), torch.full(q.shape[:2], -torch.inf, dtype=q.dtype)
    for row in range(len(q)):
        for token in range(q.shape[1]):
            seen = [other for other in range(token) if buckets[row, other] == buckets[row, token]][-width:]
            if seen:
                scores = k[row, seen] @ q[row, token] * 0.5
                outs[row, token] = scores.softmax(0) @ v[row, seen]
                totals[row, token] = scores.logsumexp(0)
    return outs, totals


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 3),
    tokens=st.integers(1, 40),
    width=st.integers(1, 17),
    kinds=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_everyone_sees_the_last_of_its_bucket(
    rows: int, tokens: int, width: int, kinds: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(rows, tokens, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    buckets = torch.randint(kinds, (rows, tokens), generator=generator) * 7
    ours = attend_in_buckets(q, k, v, buckets, width, 0.5)
    torch.testing.assert_close(ours, _by_hand(q, k, v, buckets, width))


def test_gradients_where_nobody_is_seen_are_zero_and_no_nan() -> None:
    q, k, v = (torch.randn(1, 5, 3, requires_grad=True) for _ in range(3))
    outs, totals = attend_in_buckets(q, k, v, torch.arange(5)[None], 2, 1.0)
    assert (totals == -torch.inf).all()
    merged = merge_rounds(outs[:, None], totals[:, None], v)
    assert torch.equal(merged, v)
    merged.sum().backward()
    assert q.grad is not None and not q.grad.any()
    assert v.grad is not None and (v.grad == 1).all()


def test_rounds_merge_to_one_softmax_in_which_repeats_count() -> None:
    torch.manual_seed(3)
    q, k, v = (torch.randn(1, 23, 4, dtype=torch.float64) for _ in range(3))
    buckets = [torch.randint(3, (1, 23)) for _ in range(3)]
    rounds = [attend_in_buckets(q, k, v, each, 5, 0.7) for each in buckets]
    merged = merge_rounds(*(torch.stack(parts, dim=1) for parts in zip(*rounds, strict=True)), v)
    counts = torch.zeros(1, 23, 23)
    for each in buckets:
        for token in range(23):
            seen = [other for other in range(token) if each[0, other] == each[0, token]][-5:]
            counts[0, token, seen] += 1
    counts[0] += torch.diag((counts[0].sum(dim=1) == 0).float())
    torch.testing.assert_close(merged, attend_counted(q, k, v, counts, 0.7))


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 64, 65, 4097])
def test_levels_cover_every_rank_once(tokens: int) -> None:
    levels = _mixer().levels(tokens)
    assert levels[0].start == 0
    assert levels[-1].end == tokens
    assert all(one.end == following.start for one, following in itertools.pairwise(levels))
    for level in levels:  # were they equally full, all of a bucket could be seen
        assert level.end / level.buckets <= 4
        assert level.start / level.buckets in (0, 1)


def test_a_key_is_found_from_far_away() -> None:
    """Tokens of 40 kinds; each is answered by the last of its kind, hundreds of tokens back."""
    torch.manual_seed(1)
    mixer = _mixer(bucket=8, hash_rounds=4, position="none", dim=32, head_dim=32, heads=1)
    kinds = torch.cat((torch.randperm(400), torch.arange(400)))
    vectors = torch.nn.functional.normalize(torch.randn(400, 32), dim=-1) * 40
    with torch.no_grad():
        for layer in (mixer.projections.query, mixer.projections.value, mixer.projections.out):
            layer.weight.copy_(torch.eye(32))
        y, _ = mixer(vectors[kinds][None], torch.arange(800)[None])
    answered = (y[0, 400:] @ vectors.T).argmax(dim=1)
    assert (answered == kinds[400:]).float().mean() > 0.85


def test_rotations_come_from_the_seed() -> None:
    assert torch.equal(_mixer().rotations, _mixer().rotations)
    assert not torch.equal(_mixer().rotations, _mixer(seed=1).rotations)


def test_every_weight_learns() -> None:
    mixer = _mixer()
    y, _ = mixer(torch.randn(1, 50, 16), torch.arange(50)[None])
    y.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in mixer.parameters())
