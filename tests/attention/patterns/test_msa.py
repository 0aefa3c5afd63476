"""MSA training: against its plain twin, at the sizes and in the company that real batches have."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mnemos.attention.patterns.contrastive import route_loss
from mnemos.attention.patterns.mixer import PADDING, MixerConfig
from mnemos.attention.patterns.msa import Msa
from mnemos.attention.patterns.msa_every import MsaEvery
from mnemos.attention.patterns.msa_state import MsaState, reading, writing
from mnemos.attention.patterns.naive.msa import mix, mix_routed

_SIZES = {"dim": 12, "heads": 4, "kv_heads": 2, "head_dim": 4, "document": 16, "pool": 5, "top_k": 2}


def _mixer(**sizes: object) -> Msa:
    torch.manual_seed(1)
    return Msa(MixerConfig(**{**_SIZES, **sizes})).double()


def _tokens(batch: int, tokens: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    x = torch.randn(batch, tokens, 12, dtype=torch.float64)
    return x, torch.arange(tokens).repeat(batch, 1)


def _ragged() -> tuple[Tensor, Tensor]:
    """Documents of many lengths, padding at the front, between and behind, and a row of padding alone."""
    x, positions = _tokens(4, 37)
    positions[0] = torch.tensor(
        [PADDING] * 3 + list(range(7)) + list(range(20)) + [0] + list(range(3, 6)) + [2, 7, 8]
    )
    positions[1] = torch.tensor([*range(36), PADDING])
    positions[2] = torch.tensor(list(range(3)) * 12 + [3])
    positions[1, 20:24] = PADDING
    positions[3] = PADDING
    x[positions == PADDING] = math.nan
    return x, positions


@pytest.mark.parametrize("position", ["rope", "alibi", "none"])
@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 63, 65])
def test_equals_plain_twin(tokens: int, position: str) -> None:
    mixer = _mixer(position=position)
    x, positions = _tokens(2, tokens)
    torch.testing.assert_close(mixer(x, positions)[0], mix(mixer, x, positions))


@pytest.mark.parametrize("top_k", [1, 2, 50])
def test_ragged_documents_equal_plain_twin_with_gradients(top_k: int) -> None:
    mixer = _mixer(top_k=top_k)
    x, positions = _ragged()
    weight = torch.randn(x.shape, dtype=x.dtype)
    gradients = []
    for form in (lambda given: mixer(given, positions)[0], lambda given: mix(mixer, given, positions)):
        given = x.clone().requires_grad_()
        mixer.zero_grad()
        y = form(given)
        (y * weight).sum().backward()
        gradients.append(
            [y, given.grad.nan_to_num(), *(p.grad for p in mixer.parameters() if p.grad is not None)]
        )
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain)
    assert not gradients[0][0][3].any()


def test_scores_equal_plain_twin_with_gradients() -> None:
    mixer = _mixer()
    x, positions = _ragged()
    _, _, scores = mixer.forward_routed(x, positions)
    _, plain = mix_routed(mixer, x, positions)
    assert scores.shape == (4, 11)
    for row, expected in zip(scores, plain, strict=True):
        torch.testing.assert_close(row[: len(expected)], torch.stack(expected) if expected else row[:0])
        assert (row[len(expected) :] == -torch.inf).all()
    weights = (mixer.projections.router_query.weight, mixer.projections.router_key.weight)
    ours = torch.autograd.grad(scores[scores > -torch.inf].square().sum(), weights)
    theirs = torch.autograd.grad(sum(one.square() for row in plain for one in row), weights)
    torch.testing.assert_close(ours, theirs)


def test_only_tokens_that_ask_route() -> None:
    mixer = _mixer(top_k=1)
    x, positions = _tokens(2, 60)
    asks = torch.zeros(2, 60, dtype=torch.bool)
    asks[:, 48:52] = True
    y, _, scores = mixer.forward_routed(x, positions, asks=asks)
    shorter, _, of_question = mixer.forward_routed(x[:, :52], positions[:, :52])
    torch.testing.assert_close(scores, of_question)
    torch.testing.assert_close(y[:, :52], shorter)
    assert not torch.allclose(scores, mixer.forward_routed(x, positions)[2])
    _, _, nobody = mixer.forward_routed(x, positions, asks=torch.zeros_like(asks))
    assert (nobody == -torch.inf).all()


def test_gradients_reach_what_was_read_and_nothing_else() -> None:
    mixer = _mixer(top_k=1)
    x, positions = _tokens(1, 60)
    x.requires_grad_()
    asks = torch.zeros(1, 60, dtype=torch.bool)
    asks[:, 48] = True
    y, _, scores = mixer.forward_routed(x, positions, asks=asks)
    y[:, 50:].square().sum().backward()
    touched = x.grad[0, :48].view(3, 16, 12).abs().amax(dim=(1, 2)) > 0
    assert touched.tolist() == [index == int(scores[0].argmax()) for index in range(3)]


@pytest.mark.parametrize("changed", [3, 20, 40, 50, 59])
def test_no_output_depends_on_a_later_token(changed: int) -> None:
    mixer = _mixer()
    x, positions = _tokens(1, 60)
    other = x.clone()
    other[:, changed:] = torch.randn_like(other[:, changed:]) * 3
    before, after = (mixer(given, positions)[0][:, :changed] for given in (x, other))
    torch.testing.assert_close(before, after, atol=1e-12, rtol=0)  # sums may be in another order


def test_question_goes_on_token_by_token_as_at_once() -> None:
    mixer = _mixer()
    x, positions = _ragged()
    x, positions = x[:, :36], positions[:, :36]  # the last documents begin at 34, 33, 33 and never
    positions[1, 33:] = torch.arange(3)
    y, _, scores = mixer.forward_routed(x, positions)
    first, state = mixer(x[:, :34], positions[:, :34], mixer.initial_state(4))
    parts = [first]
    for index in range(34, 36):
        part, state = mixer(x[:, index : index + 1], positions[:, index : index + 1], state)
        parts.append(part)
    for row, begin in enumerate((34, 33, 33, 0)):
        torch.testing.assert_close(torch.cat(parts, dim=1)[row, begin:], y[row, begin:])
    assert isinstance(state, MsaState)
    torch.testing.assert_close(state.best, scores)


def test_a_document_that_is_full_goes_to_the_bank() -> None:
    """Token by token through five documents: each is read once it is over."""
    mixer = _mixer()
    x, positions = _tokens(3, 71)
    positions[1, :50] = PADDING  # a row that begins late
    positions[2, 9:40] = PADDING  # and one that waits
    state = mixer.initial_state(3)
    parts = []
    for index in range(71):
        part, state = mixer(x[:, index : index + 1], positions[:, index : index + 1], state)
        parts.append(part)
        assert isinstance(state, MsaState)
        assert state.positions.shape[1] <= 16
        if index in (0, 9, 15, 16, 41, 63, 64, 66):
            plain = mix(mixer, x[:, : index + 1], positions[:, : index + 1])[:, -1:]
            torch.testing.assert_close(part, plain)
    assert state.bank_used.tolist() == [[4, 4, 4, 4], [4, 0, 0, 0], [4, 4, 0, 0]]


def test_documents_written_in_groups_equal_one_call() -> None:
    mixer = _mixer()
    x, positions = _tokens(2, 75)
    y = mixer(x, positions)[0]
    gradient = torch.autograd.grad(y[:, 64:].square().sum(), mixer.parameters(), allow_unused=True)

    def call(index: int, state: MsaState) -> tuple[Tensor, MsaState]:
        part = slice(32 * index, 32 * (index + 1))
        return mixer(x[:, part], positions[:, part], state)

    state = writing(mixer.initial_state(2))
    parts = []
    for index in range(2):
        part, state = checkpoint(call, index, state, use_reentrant=False)
        parts.append(part)
    parts.append(call(2, reading(state))[0])
    torch.testing.assert_close(torch.cat(parts, dim=1), y)
    again = torch.autograd.grad(parts[-1].square().sum(), mixer.parameters(), allow_unused=True)
    torch.testing.assert_close(again, gradient)


def test_checkpointing_changes_nothing() -> None:
    mixer = _mixer()
    x, positions = _ragged()
    x = x.nan_to_num().requires_grad_()
    results = []
    for recompute in (False, True):
        mixer.checkpoint, mixer.documents_per_group = recompute, 3
        y, _, scores = mixer.forward_routed(x, positions)
        loss = y.square().sum() + scores[scores > -torch.inf].sum()
        results.append((y, scores, torch.autograd.grad(loss, [x, *mixer.parameters()])))
    torch.testing.assert_close(results[0], results[1])


def test_bf16_under_autocast_and_in_full() -> None:
    x, positions = _ragged()
    x = x.nan_to_num()
    exact = mix(_mixer(), x, positions)
    with torch.autocast("cpu", torch.bfloat16):
        y, _, scores = _mixer().float().forward_routed(x.float(), positions)
        (y.float().sum() + scores[scores > -torch.inf].sum()).backward()
    torch.testing.assert_close(y.double(), exact, atol=0.05, rtol=0.05)
    torch.testing.assert_close(
        _mixer().bfloat16()(x.bfloat16(), positions)[0].double(), exact, atol=0.05, rtol=0.05
    )


def _saved_bytes(mixer: Msa, tokens: int) -> int:
    """Of distinct tensors that the backward pass holds, weights aside."""
    seen: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in mixer.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    x, positions = torch.randn(1, tokens, 12), torch.arange(tokens)[None]
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = mixer(x.requires_grad_(), positions)[0]
    assert y.requires_grad
    return sum(seen.values())


def _exponent(lengths: list[int], costs: list[int]) -> float:
    """The slope of a straight line through the logarithms."""
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (lengths, costs))
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def test_operations_and_memory_grow_with_the_length() -> None:
    mixer = _mixer().float()
    lengths = [1024, 2048, 4096, 8192, 16384]
    assert _exponent(lengths, [mixer.operations(n) for n in lengths]) == pytest.approx(1, abs=0.02)
    held = [_saved_bytes(mixer, n) for n in lengths]
    assert _exponent(lengths, held) == pytest.approx(1, abs=0.02)
    mixer.checkpoint = True
    recomputed = [_saved_bytes(mixer, n) for n in lengths]
    assert _exponent(lengths, recomputed) == pytest.approx(1, abs=0.05)  # the question is a fixed part of it
    assert recomputed[-1] < 0.5 * held[-1]


def test_every_document_reads_in_groups_of_any_size_and_step_by_step() -> None:
    torch.manual_seed(1)
    mixer = MsaEvery(MixerConfig(**_SIZES)).double()
    x, positions = _ragged()
    x = x.nan_to_num().requires_grad_()
    results = []
    for together in (1, 4, 100):
        mixer.documents_per_group = together
        y, _, scores = mixer.forward_routed(x, positions)
        results.append((y, scores, torch.autograd.grad(y.square().sum(), x)))
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])
    with torch.no_grad():
        state, parts = mixer.initial_state(4), []
        for part, places in zip(x.split(5, dim=1), positions.split(5, dim=1), strict=True):
            piece, state = mixer(part, places, state)
            parts.append(piece)
    torch.testing.assert_close(torch.cat(parts, dim=1), results[0][0])
    assert not torch.allclose(mixer(x, positions)[0], _mixer()(x, positions)[0])


def test_documents_that_are_written_do_not_read() -> None:
    torch.manual_seed(1)
    mixer = MsaEvery(MixerConfig(**_SIZES)).double()
    x, positions = _tokens(2, 64)
    alone = mixer(x.view(8, 16, 12), positions.view(8, 16) % 16)[0]
    y, state = mixer(x, positions, writing(mixer.initial_state(2)))
    torch.testing.assert_close(y.view(8, 16, 12), alone)
    assert isinstance(state, MsaState)
    assert not state.reads


def test_the_router_learns_to_find_the_evidence() -> None:
    """Questions ask by a vector that only training can match with the one in a document."""
    mixer = _mixer(dim=16, heads=4, kv_heads=4, head_dim=8, pool=4, top_k=1).float()
    generator = torch.Generator().manual_seed(4)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0]

    def batch() -> tuple[Tensor, Tensor, Tensor]:
        keys = torch.randn(32, 8, 16, generator=generator)
        x = torch.randn(32, 8 * 16 + 1, 16, generator=generator) * 0.2
        where = torch.arange(8) * 16 + torch.randint(16, (32, 8), generator=generator)
        x.scatter_(1, where[..., None].expand(-1, -1, 16), keys)
        asked = torch.randint(8, (32,), generator=generator)
        x[:, -1] = keys[torch.arange(32), asked] @ turn
        return x, torch.arange(129).repeat(32, 1), torch.nn.functional.one_hot(asked, 8).bool()

    def recall() -> float:
        x, positions, evidence = batch()
        with torch.no_grad():
            scores = mixer.forward_routed(x, positions)[2]
        return float(evidence[torch.arange(32), scores.argmax(dim=1)].float().mean())

    assert recall() < 0.5
    optimizer = torch.optim.Adam(mixer.parameters(), lr=0.01)
    for _ in range(60):
        x, positions, evidence = batch()
        optimizer.zero_grad()
        route_loss(mixer.forward_routed(x, positions)[2], evidence, 0.1).backward()
        optimizer.step()
    assert recall() > 0.8
