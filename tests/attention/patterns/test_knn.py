"""Nearest neighbours: found exactly, read through a gate, and without gradients of their own."""

import pytest
import torch
from torch import Tensor

from mnemos.attention.patterns.knn import Knn
from mnemos.attention.patterns.mixer import MixerConfig
from mnemos.attention.patterns.neighbours import nearest, read_neighbours


def _mixer(**sizes: object) -> Knn:
    torch.manual_seed(0)
    fixed = {"dim": 12, "heads": 4, "kv_heads": 2, "head_dim": 4, "window": 8, "neighbours": 3}
    return Knn(MixerConfig(**{**fixed, **sizes})).double()


def _tokens(tokens: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(1, tokens, 12, dtype=torch.float64), torch.arange(tokens)[None]


@pytest.mark.parametrize("keys", [0, 1, 2, 5, 63, 65])
def test_neighbours_are_those_of_a_full_sort(keys: int) -> None:
    torch.manual_seed(2)
    queries, held = torch.randn(4, 7, 8), torch.randn(2, keys, 8)
    found = nearest(queries, held, 5)
    products = queries @ held.repeat_interleave(2, dim=0).transpose(1, 2)
    expected = products.argsort(dim=2, descending=True)[..., :5]
    assert torch.equal(found[..., : expected.shape[2]], expected)
    assert (found[..., keys:] == -1).all()


def test_nothing_found_is_nothing_read() -> None:
    queries = torch.randn(1, 2, 3, 4, requires_grad=True)
    found = torch.full((1, 2, 3, 5), -1)
    found[0, 0, 0, 0] = 1
    read = read_neighbours(queries, torch.randn(1, 1, 2, 4), torch.ones(1, 1, 2, 4), found, 1.0)
    assert read[0, 0, 0].tolist() == [1.0] * 4
    assert read.sum() == 4
    read.sum().backward()
    assert queries.grad is not None and queries.grad.isfinite().all()


def test_memory_gets_no_gradient_and_queries_do() -> None:
    """Token 25 is of segment 3: near are 16 and on, memory is 0 to 15."""
    mixer = _mixer()
    x, positions = _tokens(26)
    x.requires_grad_()
    y, _ = mixer(x, positions)
    y[0, 25].sum().backward()
    assert x.grad is not None
    assert (x.grad[0].abs().amax(dim=1) > 0).nonzero()[:, 0].tolist() == list(range(16, 26))
    assert mixer.gate.grad is not None and mixer.gate.grad.any()
    with torch.no_grad():  # memory is read all the same
        other = x.clone()
        other[0, :16] *= 2
        assert not torch.allclose(mixer(other, positions)[0][0, 25], y[0, 25])


def test_a_closed_gate_leaves_what_is_near() -> None:
    mixer = _mixer()
    x, positions = _tokens(40)
    with torch.no_grad():
        mixer.gate.fill_(-100)
        y, _ = mixer(x, positions)
        near, _ = mixer(x[:, 24:], positions[:, 24:])
    torch.testing.assert_close(y[:, 32:], near[:, 8:])


def test_a_key_is_found_from_far_away() -> None:
    torch.manual_seed(1)
    mixer = _mixer(position="none", dim=32, head_dim=32, heads=1, kv_heads=1)
    kinds = torch.cat((torch.randperm(100), torch.arange(100)))
    vectors = torch.nn.functional.normalize(torch.randn(100, 32, dtype=torch.float64), dim=-1) * 10
    with torch.no_grad():
        for layer in (mixer.projections.query, mixer.projections.key, mixer.projections.value):
            layer.weight.copy_(torch.eye(32))
        mixer.projections.out.weight.copy_(torch.eye(32))
        mixer.gate.fill_(100)
        y, _ = mixer(vectors[kinds][None], torch.arange(200)[None])
    answered = (y[0, 116:] @ vectors.T).argmax(dim=1)
    assert torch.equal(answered, kinds[116:])
