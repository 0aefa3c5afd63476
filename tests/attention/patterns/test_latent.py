"""Latent KV against DeepSeek-V2's attention in transformers, and how little it keeps."""

from typing import Any

import torch
from transformers.models.deepseek_v2.configuration_deepseek_v2 import DeepseekV2Config
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Attention

from mnemos.attention.patterns.dense import Dense
from mnemos.attention.patterns.latent import Latent
from mnemos.attention.patterns.mixer import MixerConfig

SIZES: dict[str, Any] = {"dim": 24, "heads": 4, "kv_heads": 4, "head_dim": 8, "latent": 12}


def test_equals_transformers() -> None:
    torch.manual_seed(0)
    mixer = Latent(MixerConfig(**SIZES))
    config = DeepseekV2Config(
        hidden_size=24,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=None,
        kv_lora_rank=12,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
        attn_implementation="eager",
    )
    theirs = DeepseekV2Attention(config, 0)
    assert mixer.shared_key is not None
    with torch.no_grad():
        theirs.q_proj.weight.copy_(mixer.query.weight)
        theirs.kv_a_proj_with_mqa.weight.copy_(torch.cat((mixer.compress.weight, mixer.shared_key.weight)))
        theirs.kv_a_layernorm.weight.copy_(mixer.norm.weight)
        both = torch.cat((mixer.key.weight.view(4, 8, 12), mixer.value.weight.view(4, 8, 12)), dim=1)
        theirs.kv_b_proj.weight.copy_(both.flatten(0, 1))
        theirs.o_proj.weight.copy_(mixer.out.weight)
    places = torch.arange(33).repeat(2, 1)
    angles = places[..., None] * 10_000.0 ** (-torch.arange(0, 4, 2) / 4)
    mask = torch.full((33, 33), -torch.inf).triu(1)[None, None]
    x = torch.randn(2, 33, 24)
    expected, _ = theirs(x, mask, position_embeddings=torch.polar(torch.ones_like(angles), angles))
    torch.testing.assert_close(mixer(x, places)[0], expected, rtol=1e-4, atol=2e-6)


def test_it_keeps_a_latent_and_one_shared_key_a_token() -> None:
    config = MixerConfig(**SIZES)
    mixer, dense = Latent(config), Dense(config)
    x, places = torch.randn(1, 100, 24), torch.arange(100)[None]
    _, kept = mixer(x, places, mixer.initial_state(1))
    _, cache = dense(x, places, dense.initial_state(1))
    assert kept is not None
    assert cache is not None
    assert kept.bytes() == 100 * ((12 + 4) * 4 + 8)  # fp32, and a position
    assert cache.bytes() == 100 * (4 * (8 + 8) * 4 + 8)


def test_reading_on_expands_no_earlier_key() -> None:
    mixer = Latent(MixerConfig(**SIZES))
    _, state = mixer(torch.randn(1, 50, 24), torch.arange(50)[None], mixer.initial_state(1))
    calls: list[object] = []
    for expansion in (mixer.key, mixer.value):
        expansion.register_forward_hook(lambda *args: calls.append(args))
    mixer(torch.randn(1, 1, 24), torch.tensor([[50]]), state)
    assert not calls
    mixer(torch.randn(1, 5, 24), torch.arange(5)[None])
    assert len(calls) == 2
