"""What holds for every attention pattern: its plain twin, its steps, its cost, its answer to odd input."""

import math
import sys
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mnemos.attention.patterns.mixer import PADDING, Mixer, MixerConfig
from mnemos.attention.patterns.registry import make_mixer, naive_twin, pattern, pattern_names

# Sizes that agree with one another nowhere, and a width that is not heads * head_dim.
SMALL: dict[str, Any] = {
    "dim": 20,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 8,
    "window": 19,
    "sinks": 3,
    "block": 8,
    "random_blocks": 2,
    "global_blocks": 1,
    "hash_rounds": 2,
    "bucket": 8,
    "clusters": 4,
    "features": 12,
    "segment": 16,
    "compression": 4,
    "compressed": 6,
    "neighbours": 5,
    "latent": 10,
    "document": 32,
    "pool": 8,
    "top_k": 2,
}
WITHOUT_SCORES = {"linear", "favor"}
"""Patterns that cannot take ALiBi."""


@pytest.fixture(params=pattern_names())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def build(name: str, dtype: torch.dtype = torch.float64, **changes: Any) -> Mixer:
    torch.manual_seed(len(name))
    return make_mixer(name, MixerConfig(**(SMALL | changes))).to(dtype).eval()


def whole(tokens: int) -> Tensor:
    """[1, tokens]: one sequence."""
    return torch.arange(tokens)[None]


def ragged(tokens: int) -> Tensor:
    """[2, tokens]: a sequence with holes and padding in front and behind, and one of three documents."""
    there = torch.ones(tokens, dtype=torch.bool)
    there[[0, 1, 5, tokens // 2, tokens // 2 + 1, tokens - 1]] = False
    holes = torch.where(there, there.cumsum(0) - 1, PADDING)
    first, second = tokens // 3, tokens // 2
    documents = torch.cat((torch.arange(first), torch.arange(second), torch.arange(tokens - first - second)))
    return torch.stack((holes, documents))


def tokens_at(positions: Tensor, dim: int = SMALL["dim"]) -> Tensor:
    generator = torch.Generator().manual_seed(positions.numel())
    return torch.randn(*positions.shape, dim, generator=generator, dtype=torch.float64)


def gradients(
    mixer: Mixer, form: Callable[[Tensor, Tensor], Tensor], x: Tensor, positions: Tensor
) -> list[Tensor]:
    """Output, then the gradients of a fixed sum of it: of x, and of each weight that has one."""
    x = x.clone().requires_grad_()
    y = form(x, positions)
    weights = [weight for weight in mixer.parameters() if weight.requires_grad]
    along = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    found = torch.autograd.grad((y * along).sum(), [x, *weights], allow_unused=True)
    # No gradient and a gradient of zero are one thing here.
    return [y.detach()] + [
        torch.zeros_like(of) if value is None else value
        for of, value in zip([x, *weights], found, strict=True)
    ]


@pytest.mark.parametrize(
    ("position", "places"),
    [
        pytest.param("rope", whole(1), id="rope-1"),
        pytest.param("rope", whole(63), id="rope-63"),
        pytest.param("rope", ragged(65), id="rope-65-ragged"),
        pytest.param("rope", whole(37), id="rope-37"),
        pytest.param("alibi", ragged(31), id="alibi-31-ragged"),
        pytest.param("none", whole(29), id="none-29"),
    ],
)
def test_equals_its_plain_twin_forward_and_backward(name: str, position: str, places: Tensor) -> None:
    if position == "alibi" and name in WITHOUT_SCORES:
        with pytest.raises(ValueError, match=f"ALiBi .* {name} pattern"):
            build(name, position=position)
        return
    mixer, twin, x = build(name, position=position), naive_twin(name), tokens_at(places)
    ours = gradients(mixer, lambda x, at: mixer(x, at)[0], x, places)
    plain = gradients(mixer, lambda x, at: twin(mixer, x, at), x, places)
    assert ours[0].abs().max() > 0.01
    for mine, truth in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-9, atol=1e-10)


@st.composite
def sizes_of_any_kind(draw: st.DrawFn) -> dict[str, Any]:
    """Sizes from nothing to more than there are tokens."""
    pick, kv_heads, compression = st.sampled_from, draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 4]))
    sizes = {
        "dim": pick([3, 8]),
        "head_dim": pick([2, 4, 6]),
        "position": pick(["rope", "alibi", "none"]),
        "window": pick([1, 2, 5, 40]),
        "sinks": pick([0, 1, 30]),
        "block": pick([1, 3, 8, 50]),
        "random_blocks": pick([0, 1, 3]),
        "global_blocks": pick([0, 1, 3]),
        "features": pick([1, 5, 9]),
        "latent": pick([1, 4]),
        "hash_rounds": pick([1, 3]),
        "bucket": pick([1, 5, 40]),
        "clusters": pick([1, 3]),
        "compressed": pick([1, 3, 8]),
        "neighbours": pick([1, 3, 50]),
        "document": pick([1, 4, 9, 50]),
        "pool": pick([1, 3, 8]),
        "top_k": pick([1, 2, 9]),
        "seed": pick([0, 1]),
    }
    return {field: draw(of) for field, of in sizes.items()} | {
        "kv_heads": kv_heads,
        "heads": kv_heads * draw(st.integers(1, 2)),
        "compression": compression,
        "segment": compression * draw(pick([1, 2, 5])),
    }


@given(sizes_of_any_kind(), st.lists(st.booleans(), min_size=1, max_size=20), st.integers(1, 20))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_equals_its_plain_twin_whatever_the_sizes(
    name: str, sizes: dict[str, Any], there: list[bool], step: int
) -> None:
    assume(sizes["position"] != "alibi" or name not in WITHOUT_SCORES)
    mixer = build(name, **sizes)
    places = torch.tensor([[index if real else PADDING for index, real in enumerate(there)]])
    x = tokens_at(places, sizes["dim"])
    with torch.no_grad():
        y, truth = mixer(x, places)[0], naive_twin(name)(mixer, x, places)
        torch.testing.assert_close(y, truth, rtol=1e-9, atol=1e-10)
        state, parts = mixer.initial_state(1), []
        for part, at in zip(x.split(step, dim=1), places.split(step, dim=1), strict=True):
            y, state = mixer(part, at, state)
            parts.append(y)
    if mixer.exact_steps:
        torch.testing.assert_close(torch.cat(parts, dim=1), truth, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("steps", [[1] * 53, [1, 2, 20, 1, 29], [48, 5], [53]], ids=lambda steps: len(steps))
def test_step_by_step_gives_what_it_gives_at_once(name: str, steps: list[int]) -> None:
    mixer, places = build(name), ragged(53)
    x = tokens_at(places)
    with torch.no_grad():
        at_once, none = mixer(x, places)
        state, parts = mixer.initial_state(2), []
        for part, at in zip(x.split(steps, dim=1), places.split(steps, dim=1), strict=True):
            y, state = mixer(part, at, state)
            parts.append(y)
    assert none is None
    assert state.bytes() > 0
    stepped = torch.cat(parts, dim=1)
    assert stepped.isfinite().all()
    if mixer.exact_steps:
        torch.testing.assert_close(stepped, at_once, rtol=1e-9, atol=1e-10)


def test_a_state_can_be_gone_on_from_twice(name: str) -> None:
    mixer, places = build(name), whole(40)
    x = tokens_at(places)
    with torch.no_grad():
        _, state = mixer(x[:, :30], places[:, :30], mixer.initial_state(1))
        first, _ = mixer(x[:, 30:], places[:, 30:], state)
        mixer(-x[:, 30:], places[:, 30:], state)
        again, _ = mixer(x[:, 30:], places[:, 30:], state)
    assert torch.equal(first, again)


@pytest.mark.parametrize("at", [1, 33, 64, 96])
def test_no_output_depends_on_a_later_token(name: str, at: int) -> None:
    mixer, places = build(name), whole(97)
    x = tokens_at(places)
    other = x.clone()
    other[:, at:] = tokens_at(places)[:, at:].flip(-1) * 3
    with torch.no_grad():
        before, after = mixer(x, places)[0], mixer(other, places)[0]
    torch.testing.assert_close(before[:, :at], after[:, :at], rtol=1e-10, atol=1e-12)
    assert not torch.allclose(before[:, at:], after[:, at:])


def test_padding_is_not_there(name: str) -> None:
    mixer, places = build(name), ragged(70)[:1]
    x, there = tokens_at(places), places[0] != PADDING
    other = x.clone()
    other[:, ~there] = 7.0
    with torch.no_grad():
        y, same = mixer(x, places)[0], mixer(other, places)[0]
        without = mixer(x[:, there], places[:, there])[0]
    assert torch.equal(y[:, ~there], torch.zeros_like(y[:, ~there]))
    torch.testing.assert_close(y, same, rtol=0, atol=1e-12)
    torch.testing.assert_close(y[:, there], without, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("tokens", [1, 8, 40])
def test_a_row_that_is_all_padding_is_zero_and_harms_no_gradient(name: str, tokens: int) -> None:
    mixer = build(name)
    places = torch.stack((torch.full((tokens,), PADDING), torch.arange(tokens)))
    x = tokens_at(places)
    found = gradients(mixer, lambda x, at: mixer(x, at)[0], x, places)
    assert all(value.isfinite().all() for value in found)
    assert not found[0][0].any()
    assert not found[1][0].any()
    torch.testing.assert_close(found[0][1:], mixer(x[1:], places[1:])[0])
    y, state = mixer(x, places, mixer.initial_state(2))
    assert not y[0].any()
    after, _ = mixer(x, places.flip(0), state)
    assert after.isfinite().all()


@pytest.mark.parametrize("tokens", [1, 2, 7, 9, 18, 20, 33])
def test_any_length_will_do(name: str, tokens: int) -> None:
    mixer = build(name)
    y, _ = mixer(tokens_at(whole(tokens)), whole(tokens))
    assert y.shape == (1, tokens, SMALL["dim"])
    assert y.isfinite().all()


def test_wrong_shapes_are_refused(name: str) -> None:
    mixer, places = build(name), whole(5)
    x = tokens_at(places)
    for wrong in (x[0], x[..., :-1], x[:, :0]):
        with pytest.raises(ValueError, match="x must be"):
            mixer(wrong, places)
    for odd in (places[0], places[:, :-1], places.int(), places.repeat(2, 1)):
        with pytest.raises(ValueError, match="positions must be"):
            mixer(x, odd)


def test_a_state_of_another_mixer_or_batch_is_refused(name: str) -> None:
    mixer, places = build(name), whole(5)
    x = tokens_at(places)
    other = build("linear" if name != "linear" else "dense").initial_state(1)
    with pytest.raises(ValueError, match="state"):
        mixer(x, places, other)
    with pytest.raises(ValueError, match="sequences"):
        mixer(x, places, mixer.initial_state(3))


def test_what_is_saved_and_loaded_is_the_same_mixer(name: str) -> None:
    mixer, other = build(name), build(name, seed=1)
    with torch.no_grad():
        for weight in mixer.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    x, places = tokens_at(whole(40)), whole(40)
    other.load_state_dict(mixer.state_dict())
    if name != "bigbird":  # its random blocks are the configuration's
        assert torch.equal(mixer(x, places)[0], other(x, places)[0])


def test_half_precision_runs_and_trains(name: str) -> None:
    mixer, places = build(name, torch.float32).train(), ragged(40)
    x = tokens_at(places).float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = mixer(x, places)
        state = mixer.initial_state(2)
        for part in range(0, 40, 10):
            step, state = mixer(x[:, part : part + 10], places[:, part : part + 10], state)
    assert step.isfinite().all()
    y.float().square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in mixer.parameters())


def counted_multiply_adds(mixer: Mixer, tokens: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """What PyTorch counts in one forward pass, without the linear maps, and what faiss multiplies."""
    besides: list[int] = []

    def in_a_linear_map(layer: nn.Module, inputs: tuple[Tensor], y: Tensor) -> None:
        besides.append(inputs[0].numel() * y.shape[-1])

    def attention(q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False, **options: Any) -> Tensor:
        if is_causal:  # the plain form that is counted does the upper half too
            length = q.shape[2]
            besides.append(q.shape[:2].numel() * length * (length - 1) // 2 * (q.shape[3] + v.shape[3]))
        return fused(q, k, v, is_causal=is_causal, **options)

    def search(queries: Any, keys: Any, count: int, **options: Any) -> Any:
        besides.append(-queries.size * len(keys))
        return exact(queries, keys, count, **options)

    exact, fused = faiss.knn, functional.scaled_dot_product_attention
    monkeypatch.setattr(faiss, "knn", search)
    monkeypatch.setattr(functional, "scaled_dot_product_attention", attention)
    for layer in mixer.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(in_a_linear_map)
    places, counter = whole(tokens), FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        mixer(tokens_at(places), places)
    return counter.get_total_flops() // 2 - sum(besides)


@pytest.mark.parametrize("tokens", [96, 257])
@pytest.mark.parametrize("position", ["rope", "alibi"])
def test_operations_are_those_that_are_counted(
    name: str, position: str, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if position == "alibi" and name in WITHOUT_SCORES:
        pytest.skip("has no scores")
    mixer = build(name, position=position, **({"top_k": 50} if name == "msa_every" else {}))
    if name == "msa_every":  # documents together are given what any of them reads
        mixer.documents_per_group = 1
    assert mixer.operations(tokens) == counted_multiply_adds(mixer, tokens, monkeypatch)


def exponent(lengths: list[int], costs: list[float]) -> float:
    """The slope of log cost over log length."""
    return float(np.polyfit(np.log(lengths), np.log(costs), 1)[0])


def test_operations_grow_as_stated(name: str) -> None:
    lengths = [2**17, 2**18, 2**19]
    mixer = build(name)
    grown = exponent(lengths, [float(mixer.operations(length)) for length in lengths])
    assert math.isclose(grown, mixer.complexity.time_exponent, abs_tol=0.02)


def saved_bytes(mixer: Mixer, tokens: int) -> int:
    """Bytes of all tensors that one forward pass keeps for the backward one, each storage once."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    places = whole(tokens)
    x = tokens_at(places).float()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y, _ = mixer(x, places)
    weights = {weight.untyped_storage().data_ptr() for weight in mixer.parameters()}
    assert y.requires_grad
    return sum(size for pointer, size in kept.items() if pointer not in weights)


def test_memory_grows_as_stated(name: str) -> None:
    lengths = [512, 1024, 2048]
    if name == "msa_every":  # its last document holds what it reads, at most all of so few
        lengths = [4096, 8192, 16384]
    mixer = build(name, torch.float32)
    grown = exponent(lengths, [float(saved_bytes(mixer, length)) for length in lengths])
    assert math.isclose(grown, mixer.complexity.memory_exponent, abs_tol=0.05)


def test_the_paper_is_named(name: str) -> None:
    kind = pattern(name)
    assert kind.name == name
    assert kind.paper.removeprefix("arXiv ") in str(sys.modules[kind.__module__].__doc__)
    assert kind.paper.startswith("arXiv ")
