"""A whole MSA layer that trains with the kernel: the loss and the gradients of the torch path."""

import pytest
import torch
from torch import Tensor

from mnemos.attention.kernels import dispatch
from mnemos.attention.kernels.dispatch import Path, forced
from mnemos.attention.patterns.mixer import PADDING, MixerConfig
from mnemos.attention.patterns.msa import Msa
from mnemos.attention.patterns.msa_every import MsaEvery
from mnemos.attention.patterns.msa_state import MsaState, reading, writing


def layer(kind: type[Msa], **sizes: object) -> Msa:
    torch.manual_seed(1)
    config = {"dim": 24, "heads": 2, "kv_heads": 1, "head_dim": 64, "document": 16, "pool": 5, "top_k": 2}
    return kind(MixerConfig(**{**config, **sizes}))  # type: ignore[arg-type]


def batch() -> tuple[Tensor, Tensor]:
    """Documents of many lengths, padding before, between and behind, a row of one document."""
    torch.manual_seed(2)
    x = torch.randn(3, 43, 24)
    positions = torch.arange(43).repeat(3, 1)
    positions[0] = torch.tensor([PADDING] * 3 + [*range(16), *range(18)] + [0, 3, 4, 2, 7, 8])
    positions[1, 20:24] = PADDING
    positions[2, 12:] = PADDING
    return x, positions


def loss_and_gradients(mixer: Msa, path: Path) -> list[Tensor]:
    x, positions = batch()
    x.requires_grad_()
    mixer.zero_grad()
    with forced(path):
        y, _, scores = mixer.forward_routed(x, positions)
        loss = (y * torch.linspace(-1, 1, 24)).square().mean() + scores[scores > -torch.inf].square().mean()
        loss.backward()
    assert x.grad is not None
    return [loss.detach(), y.detach(), x.grad, *(p.grad for p in mixer.parameters() if p.grad is not None)]


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        (Msa, {}),
        (Msa, {"position": "alibi", "head_dim": 60}),
        (MsaEvery, {"kv_heads": 2}),
        (Msa, {"position": "none", "head_dim": 80, "top_k": 50}),
    ],
)
def test_trains_as_the_torch_path_does(
    kind: type[Msa], sizes: dict[str, object], poisoned: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    plain = dispatch.block_sparse
    monkeypatch.setattr(dispatch, "block_sparse", lambda *given: calls.append(1) or plain(*given))
    mixer = layer(kind, **sizes)
    expected = loss_and_gradients(mixer, "naive")
    assert not calls
    ours = loss_and_gradients(mixer, "triton")
    assert calls
    assert len(ours) == len(expected) > 5
    for mine, twin in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, twin, atol=2e-6, rtol=2e-5)


def test_a_question_that_comes_in_pieces_reads_through_the_kernel(poisoned: None) -> None:
    mixer = layer(Msa)
    x, positions = batch()
    given = []
    for path in ("naive", "triton"):
        with forced(path), torch.no_grad():
            state = mixer.initial_state(3)
            _, state = mixer(x[:, :25], positions[:, :25], writing(state))
            assert isinstance(state, MsaState)
            _, state = mixer(x[:, 25:36], positions[:, 25:36], reading(state))
            given.append(mixer(x[:, 36:], positions[:, 36:], state)[0])
    torch.testing.assert_close(*given, atol=2e-6, rtol=2e-5)
