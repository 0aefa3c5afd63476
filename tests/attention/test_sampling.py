"""Sampling against the plain definitions of its filters, and against transformers' processors."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mnemos.attention.sampling import Sampler, Sampling
from mnemos.errors import ModelError, UsageError

LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0])


def drawn(sampling: Sampling, logits: torch.Tensor = LOGITS, times: int = 400) -> set[int]:
    sampler = Sampler(sampling)
    return {sampler(logits) for _ in range(times)}


def test_greedy_takes_the_largest() -> None:
    assert Sampling().is_greedy
    assert drawn(Sampling(), times=5) == {0}


def test_a_seed_repeats_and_none_does_not() -> None:
    def draws(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, seed=seed))
        return [sampler(torch.zeros(1000)) for _ in range(8)]

    assert draws(3) == draws(3)
    assert draws(3) != draws(4)
    assert draws(None) != draws(None)


def test_frequencies_follow_the_softmax() -> None:
    sampler = Sampler(Sampling(temperature=2.0, seed=1))
    counts = torch.bincount(torch.tensor([sampler(LOGITS) for _ in range(4000)]), minlength=5) / 4000
    assert (counts - torch.softmax(LOGITS / 2, -1)).abs().max() < 0.03


@pytest.mark.parametrize(
    ("sampling", "possible"),
    [
        (Sampling(temperature=9.0, top_k=2, seed=1), {0, 1}),
        (Sampling(temperature=9.0, top_k=99, seed=1), {0, 1, 2, 3, 4}),
        (Sampling(temperature=1.0, top_p=0.7, seed=1), {0, 1}),  # shares .61 .22 .14 .03 .00
        (Sampling(temperature=1.0, top_p=1e-9, seed=1), {0}),
        (Sampling(temperature=1.0, min_p=0.3, seed=1), {0, 1}),  # e^-1 = .37 of the likeliest, e^-1.5 = .22
        (Sampling(temperature=9.0, top_k=3, top_p=0.5, min_p=0.1, seed=1), {0, 1}),
    ],
)
def test_filters_keep_what_they_should(sampling: Sampling, possible: set[int]) -> None:
    assert drawn(sampling) == possible


@settings(max_examples=60, deadline=None)
@given(
    temperature=st.floats(0.1, 3),
    top_k=st.integers(1, 40),
    top_p=st.floats(0.05, 0.999),
    min_p=st.floats(0.001, 0.9),
    penalty=st.floats(0.5, 2),
    seed=st.integers(0, 1000),
)
def test_the_same_tokens_survive_as_in_transformers(
    temperature: float, top_k: int, top_p: float, min_p: float, penalty: float, seed: int
) -> None:
    from transformers.generation import logits_process as theirs

    logits = torch.randn(40, generator=torch.Generator().manual_seed(seed)) * 3
    history = [1, 5, 5, 30]
    row: Any = logits[None].clone()
    for processor in (
        theirs.RepetitionPenaltyLogitsProcessor(penalty),
        theirs.TemperatureLogitsWarper(temperature),
        theirs.TopKLogitsWarper(top_k),
        theirs.TopPLogitsWarper(top_p),
    ):
        row = processor(torch.tensor([history]), row)
    row = theirs.MinPLogitsWarper(min_p)(None, row)
    sampler = Sampler(
        Sampling(temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty, seed=seed)
    )
    scores = torch.from_numpy(sampler._penalised(logits.numpy(), history))
    kept, ids = sampler._kept(scores / temperature)
    assert set(ids.tolist()) == set(torch.isfinite(row[0]).nonzero().flatten().tolist())
    assert torch.allclose(kept, row[0, ids])


def test_repetition_penalty_pushes_seen_tokens_down_whatever_their_sign() -> None:
    sampler = Sampler(Sampling(repetition_penalty=4.0))
    assert sampler(LOGITS, [0]) == 1
    assert sampler(torch.tensor([-1.0, -1.5]), [0]) == 1
    assert sampler(LOGITS, []) == 0
    assert LOGITS[0] == 2.0  # the caller's logits are left alone


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -0.1}, "temperature must be 0 or more"),
        ({"temperature": float("nan")}, "temperature must be 0 or more"),
        ({"temperature": float("inf")}, "must be finite"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": 1.0}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"stop": ("",)}, "a stop text must not be empty"),
    ],
)
def test_settings_are_checked(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sampling(**wrong)


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), float("inf")])
def test_logits_that_are_not_finite_are_an_error(value: float) -> None:
    logits = torch.full((5,), value)
    for sampling in (Sampling(), Sampling(temperature=1.0)):
        with pytest.raises(ModelError, match="not finite"):
            Sampler(sampling)(logits)
