"""A decoder's steps with every kernel in Triton's interpreter, against the decoder of a CPU."""

import pytest
import torch

from mnemos.attention.config import ModelConfig, layer_shapes
from mnemos.attention.decoder import Decoder
from mnemos.attention.gpu import decode
from mnemos.attention.gpu.decoder import DeviceDecoder
from mnemos.attention.gpu.pool import DevicePool
from mnemos.attention.gpu.reads import PagedSpan
from mnemos.attention.kernels.dispatch import forced
from mnemos.attention.memory_codec import decode_kv, encode_kv
from mnemos.attention.weights import LayerWeights, Weights

FAMILIES = {
    "qwen3": {"architecture": "qwen3", "qk_norm": True},
    "gemma3": {
        "architecture": "gemma3", "qk_norm": True, "post_norms": True, "window": 12, "sliding_layers": (0,),
        "local_rope_theta": 1000.0, "embedding_scale": 8.0, "activation": "gelu_tanh",
    },
}  # fmt: skip


def tiny(family: str) -> tuple[ModelConfig, Weights]:
    config = ModelConfig(
        name="tiny", vocab_size=50, hidden_size=64, layers=2, heads=6, kv_heads=2, head_dim=64,
        intermediate_size=64, rms_norm_eps=1e-6, rope_theta=10000.0, max_positions=512, tie_embeddings=True,
        bos_id=None, eos_ids=(0,), **FAMILIES[family],
    )  # fmt: skip
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * shape[-1] ** -0.5

    layers = [
        LayerWeights(**{name: drawn(*shape) for name, shape in layer_shapes(config).items()})
        for _ in range(config.layers)
    ]
    embed = drawn(config.vocab_size, config.hidden_size) * 8
    return config, Weights(embed, drawn(config.hidden_size) * 8, embed, layers)


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_of_three_conversations(family: str, poisoned: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_LEAST_SPLITS", 4)  # the interpreter goes through those that are empty too
    config, weights = tiny(family)
    host = Decoder(config, weights)
    device = DeviceDecoder(config, weights, dtype=torch.float32, device="cpu")
    payloads = {}
    for index, count in enumerate((33, 5, 40)):
        cache = host.new_cache(64)
        host.prefill(list(range(1, count + 1)), cache)
        payloads["n", str(index)] = encode_kv([cache.snapshot(0, count)], 4)
    pool = DevicePool(config, 4, budget_bytes=1 << 20, device="cpu")
    rows = []
    for memories, stride in (((0, 2), 0.5), ((1,), 0.0), ((), 0.0)):
        keys = [("n", str(each)) for each in memories]
        twin, ours = host.new_cache(200), device.new_cache(200)
        for cache, decoder in ((twin, host), (ours, device)):
            if keys and cache is ours:
                reads = pool.page_in(keys, lambda wanted: {key: payloads[key] for key in wanted})
                paged = [PagedSpan(reads, index) for index in range(len(keys))]
                ours.page_in(paged, temperature=0.8, mass_scale=0.9, stride=stride)
            elif keys:
                spans = [decode_kv(payloads[key], config, torch.float32)[0] for key in keys]
                twin.page_in(spans, temperature=0.8, mass_scale=0.9, stride=stride)
            decoder.prefill([4, 5, 6, 7, 8, 9, 10, 11, 12], cache)
        rows.append((twin, ours))
    for token in (20,):
        with forced("triton"):
            found = device.loop.step([token] * 3, [ours for _, ours in rows])
        for logits, (twin, _) in zip(found, rows, strict=True):
            wanted = host.forward([token], twin)
            assert (logits - wanted).norm() / wanted.norm() < 3e-3  # codes are multiplied in fp16
