"""The router's loss."""

import math

import pytest
import torch

from mnemos.attention.patterns.contrastive import route_loss


def _by_hand(scores: list[float], evidence: list[bool], temperature: float) -> float:
    negatives = sum(math.exp(s / temperature) for s, good in zip(scores, evidence, strict=True) if not good)
    terms = [
        -math.log(math.exp(s / temperature) / (math.exp(s / temperature) + negatives))
        for s, good in zip(scores, evidence, strict=True)
        if good
    ]
    return sum(terms) / len(terms)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_equals_the_formula(temperature: float) -> None:
    scores, evidence = [0.3, -0.2, 0.9, 0.1], [True, False, False, True]
    found = route_loss(torch.tensor([scores]).double(), torch.tensor([evidence]), temperature)
    assert float(found) == pytest.approx(_by_hand(scores, evidence, temperature))


def test_questions_without_evidence_and_documents_that_are_not_there_count_nothing() -> None:
    scores = torch.tensor([[0.3, -0.2, -torch.inf], [0.5, 0.1, 0.2], [-torch.inf] * 3], requires_grad=True)
    evidence = torch.tensor([[True, False, True], [False] * 3, [True] * 3])
    loss = route_loss(scores, evidence, 0.1)
    assert float(loss.detach()) == pytest.approx(_by_hand([0.3, -0.2], [True, False], 0.1), rel=1e-5)
    loss.backward()
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()
    assert not scores.grad[1:].any()


@pytest.mark.parametrize("shape", [(2, 0), (0, 3), (2, 3)])
def test_nothing_to_learn_from_is_zero_with_gradients(shape: tuple[int, int]) -> None:
    scores = torch.zeros(shape, requires_grad=True)
    loss = route_loss(scores, torch.ones(shape, dtype=torch.bool), 0.1)  # all are evidence: no negatives
    loss.backward()
    assert float(loss.detach()) == 0
    assert scores.grad is not None and torch.isfinite(scores.grad).all()


def test_focus_weighs_easy_questions_down() -> None:
    scores, evidence = torch.tensor([[0.9, 0.0]]), torch.tensor([[True, False]])
    plain = float(route_loss(scores, evidence, 1.0))
    fraction = math.exp(-plain)
    assert float(route_loss(scores, evidence, 1.0, focus=2.0)) == pytest.approx(plain * (1 - fraction) ** 2)


def test_descent_finds_the_evidence() -> None:
    torch.manual_seed(0)
    scores = torch.randn(4, 9, requires_grad=True)
    evidence = torch.zeros(4, 9, dtype=torch.bool)
    evidence[torch.arange(4), torch.tensor([1, 5, 0, 8])] = True
    for _ in range(50):
        (gradient,) = torch.autograd.grad(route_loss(scores, evidence, 0.2), scores)
        scores = (scores - 0.5 * gradient).detach().requires_grad_()
    assert scores.argmax(dim=1).tolist() == [1, 5, 0, 8]


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="evidence must be bool"):
        route_loss(torch.zeros(2, 3), torch.zeros(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="evidence must be bool"):
        route_loss(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="temperature must be above 0"):
        route_loss(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool), 0.0)
