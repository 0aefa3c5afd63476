"""Dense and windowed attention against x-transformers, and what a window keeps."""

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mnemos.attention.patterns.dense import Dense
from mnemos.attention.patterns.mixer import Mixer, MixerConfig
from mnemos.attention.patterns.window import Window

SIZES: dict[str, Any] = {"dim": 24, "heads": 4, "kv_heads": 4, "head_dim": 8}


def other_attention(library: ModuleType, mixer: Dense | Window, **options: Any) -> nn.Module:
    """x-transformers' layer with the weights of ours."""
    config, ours = mixer.config, mixer.projections
    theirs = library.Attention(
        config.dim, dim_head=config.head_dim, heads=config.heads, causal=True, **options
    )
    for part, weights in (
        ("to_q", ours.query),
        ("to_k", ours.key),
        ("to_v", ours.value),
        ("to_out", ours.out),
    ):
        getattr(theirs, part).weight = weights.weight
    return theirs


def other_output(library: ModuleType, mixer: Dense | Window, x: Tensor, **options: Any) -> Tensor:
    theirs, config = other_attention(library, mixer, **options), mixer.config
    how: dict[str, Any] = {}
    if config.position == "rope":
        rotary = library.x_transformers.RotaryEmbedding(config.head_dim, base=config.rope_theta)
        how["rotary_pos_emb"] = rotary.forward_from_seq_len(x.shape[1])
    if config.position == "alibi":
        how["rel_pos"] = library.x_transformers.AlibiPositionalBias(config.heads)
    return theirs(x, **how)


@pytest.mark.parametrize("position", ["rope", "alibi", "none"])
@pytest.mark.parametrize("heads", [4, 6])
@pytest.mark.parametrize("kind", [Dense, Window])
def test_equals_x_transformers(
    x_transformers: ModuleType, position: Any, heads: int, kind: type[Mixer]
) -> None:
    torch.manual_seed(0)
    sizes = SIZES | {"heads": heads, "kv_heads": heads}
    mixer = kind(MixerConfig(**sizes, position=position, window=12, sinks=0, block=5))
    assert isinstance(mixer, Dense | Window)
    # Theirs counts the tokens behind one's own.
    options = {"max_attend_past": 11} if kind is Window else {}
    x = torch.randn(2, 47, 24)
    y, _ = mixer(x, torch.arange(47).repeat(2, 1))
    torch.testing.assert_close(y, other_output(x_transformers, mixer, x, **options), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("position", ["rope", "alibi", "none"])
def test_a_window_over_everything_is_dense(position: Any) -> None:
    config = MixerConfig(**SIZES, position=position, window=50, sinks=2, block=16)
    window, dense = Window(config), Dense(config)
    dense.load_state_dict(window.state_dict())
    x, places = torch.randn(1, 50, 24), torch.arange(50)[None]
    torch.testing.assert_close(window(x, places)[0], dense(x, places)[0])


def test_a_window_keeps_as_much_after_many_tokens_as_after_none() -> None:
    mixer = Window(MixerConfig(**SIZES, window=12, sinks=2, block=8))
    state = before = mixer.initial_state(1)
    for _ in range(3):
        _, state = mixer(torch.randn(1, 40, 24), torch.arange(40)[None], state)
        assert state is not None
        assert state.bytes() == before.bytes()


def test_sinks_are_seen_from_afar_and_the_tokens_between_are_not() -> None:
    mixer = Window(MixerConfig(**SIZES, window=4, sinks=2, block=8)).double()
    x = torch.randn(1, 30, 24, dtype=torch.float64, requires_grad=True)
    y, _ = mixer(x, torch.arange(30)[None])
    y[0, 29].sum().backward()
    assert x.grad is not None
    seen = x.grad[0].abs().sum(-1).nonzero()[:, 0].tolist()
    assert seen == [0, 1, 26, 27, 28, 29]
