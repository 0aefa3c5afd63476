"""Compressed memory: what it holds, how far it reaches, and its own loss."""

import pytest
import torch
from torch import Tensor

from mnemos.attention.patterns.compressive import Compressive
from mnemos.attention.patterns.compressive_steps import CompressiveState
from mnemos.attention.patterns.mixer import PADDING, MixerConfig


def _mixer(**sizes: object) -> Compressive:
    torch.manual_seed(0)
    fixed = {"dim": 12, "heads": 4, "kv_heads": 2, "head_dim": 4, "segment": 8, "compression": 4}
    return Compressive(MixerConfig(**{**fixed, "compressed": 4, **sizes})).double()


def _tokens(batch: int, tokens: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(batch, tokens, 12, dtype=torch.float64), torch.arange(tokens).repeat(batch, 1)


def test_slots_start_as_means() -> None:
    mixer = _mixer(position="none")
    x, positions = _tokens(2, 24)
    k, v = mixer.compress(x, positions)
    means = x.unflatten(1, (6, 4)).mean(dim=2)
    _, expected_k, expected_v = mixer.projections.split(means, positions[:, :6])
    torch.testing.assert_close((k, v), (expected_k, expected_v))


def test_memory_reaches_as_far_as_its_slots_and_no_further() -> None:
    """Token 49 is of segment 6: it sees 40.. as they are, and 4 slots, those of tokens 24 to 39."""
    mixer = _mixer()
    x, positions = _tokens(1, 50)
    x.requires_grad_()
    mixer(x, positions)[0][0, 49].sum().backward()
    assert x.grad is not None
    seen = x.grad[0].abs().amax(dim=1) > 0
    assert seen.nonzero()[:, 0].tolist() == list(range(24, 50))


def test_a_state_stays_small() -> None:
    mixer = _mixer()
    x, positions = _tokens(2, 200)
    positions[1, 90:150] = PADDING  # waits, while the other goes on
    state, sizes = mixer.initial_state(2), set()
    with torch.no_grad():
        for index in range(200):
            _, state = mixer(x[:, index : index + 1], positions[:, index : index + 1], state)
            assert isinstance(state, CompressiveState)
            sizes.add(state.ranks.shape[1])
    assert max(sizes) <= 2 * 8
    assert state.slots.tolist() == [list(range(40, 46)), list(range(26, 32))]
    assert state.seen.tolist() == [200, 140]


def test_reconstruction_is_perfect_where_nothing_is_compressed() -> None:
    x, positions = _tokens(2, 40)
    assert float(_mixer(compression=1).reconstruction_loss(x, positions).detach()) < 1e-25
    assert float(_mixer().reconstruction_loss(x, positions).detach()) > 1e-3


def test_reconstruction_trains_the_convolution_alone_and_gets_better() -> None:
    mixer = _mixer()
    x, positions = _tokens(2, 40)
    positions[1, 30:] = PADDING
    x.requires_grad_()
    losses = []
    for _ in range(20):
        loss = mixer.reconstruction_loss(x, positions)
        loss.backward()
        assert x.grad is None
        assert all(w.grad is None for n, w in mixer.named_parameters() if n != "convolution")
        assert mixer.convolution.grad is not None
        with torch.no_grad():
            mixer.convolution -= 0.5 * mixer.convolution.grad
        mixer.convolution.grad = None
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0]


def test_padding_doesn_t_count_in_the_reconstruction() -> None:
    mixer = _mixer()
    x, positions = _tokens(1, 40)
    alone = mixer.reconstruction_loss(x[:, :29], positions[:, :29])
    positions[:, 29:] = PADDING
    torch.testing.assert_close(mixer.reconstruction_loss(x, positions), alone)


@pytest.mark.parametrize("tokens", [1, 8, 16])
def test_too_short_to_compress_is_zero_with_a_gradient(tokens: int) -> None:
    mixer = _mixer()
    loss = mixer.reconstruction_loss(*_tokens(1, tokens))
    loss.backward()
    assert float(loss.detach()) == 0
    assert mixer.convolution.grad is not None and not mixer.convolution.grad.any()


def test_segments_of_a_broken_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"segment \(10\) must be a multiple of compression \(4\)"):
        _mixer(segment=10)
