"""Small random models of every family's shape, as the decoder of a CPU and as that of a device."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from mnemos.attention.config import ModelConfig, RopeScaling, layer_shapes
from mnemos.attention.decoder import Decoder
from mnemos.attention.encode import encode_prefix
from mnemos.attention.gpu.decoder import DeviceDecoder
from mnemos.attention.gpu.pool import DevicePool
from mnemos.attention.gpu.reads import PagedSpan
from mnemos.attention.kv import KVCache, SpanKV
from mnemos.attention.memory_codec import TraceBits, decode_kv, encode_kv
from mnemos.attention.weights import LayerWeights, Weights

VOCAB = 101
BASE = {
    "name": "tiny", "architecture": "llama", "vocab_size": VOCAB, "hidden_size": 64, "layers": 3, "heads": 4,
    "kv_heads": 2, "head_dim": 64, "intermediate_size": 96, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "max_positions": 2048, "tie_embeddings": False, "bos_id": None, "eos_ids": (0,),
}  # fmt: skip
FAMILIES: dict[str, dict[str, object]] = {
    "llama": {},
    "qwen3": {"architecture": "qwen3", "qk_norm": True, "heads": 8, "tie_embeddings": True},
    "qwen2": {"architecture": "qwen2", "qkv_bias": True, "heads": 6},
    "gemma3": {
        "architecture": "gemma3", "qk_norm": True, "post_norms": True, "activation": "gelu_tanh",
        "embedding_scale": 8.0, "attention_scale": 0.1, "window": 24, "sliding_layers": (0, 2),
        "local_rope_theta": 1000.0,
    },
    "yarn": {
        "rope_scaling": RopeScaling(
            "yarn", factor=4.0, original_positions=512, attention_factor=1.14, beta_fast=32, beta_slow=1
        ),
        "nope_layers": (1,),
    },
}  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """One model twice, and memories that it encoded."""

    config: ModelConfig
    weights: Weights
    host: Decoder
    device: DeviceDecoder
    prefix: SpanKV
    payloads: list[bytes]  # a span of each memory
    pool: DevicePool

    def caches(
        self,
        memories: list[int],
        *,
        temperature: float = 1.0,
        mass_scale: float = 1.0,
        stride: float = 0.0,
        capacity: int = 400,
    ) -> tuple[KVCache, KVCache]:
        """The same conversation's cache on both, with these memories in view."""
        both = (self.host.new_cache(capacity), self.device.new_cache(capacity))
        for cache in both:
            cache.load_prefix(self.prefix)
        if memories:
            spans = [decode_kv(self.payloads[each], self.config, torch.float32)[0] for each in memories]
            constants = {"temperature": temperature, "mass_scale": mass_scale, "stride": stride}
            both[0].page_in(spans, **constants)
            both[1].page_in(self.paged(memories), **constants)
        return both

    def paged(self, memories: list[int]) -> list[PagedSpan]:
        keys = [("tests", str(each)) for each in memories]
        reads = self.pool.page_in(keys, lambda wanted: {key: self.payloads[int(key[1])] for key in wanted})
        return [PagedSpan(reads, index) for index in range(len(memories))]


def random_weights(config: ModelConfig, seed: int = 5) -> Weights:
    generator = torch.Generator().manual_seed(seed)

    def tensor(shape: tuple[int, ...], is_norm: bool) -> torch.Tensor:
        drawn = torch.randn(shape, generator=generator)
        return 1 + 0.1 * drawn if is_norm else drawn * (0.3 if len(shape) == 1 else shape[-1] ** -0.5)

    layers = [
        LayerWeights(**{name: tensor(shape, "norm" in name) for name, shape in layer_shapes(config).items()})
        for _ in range(config.layers)
    ]
    embed = tensor((config.vocab_size, config.hidden_size), False) * 4
    head = embed if config.tie_embeddings else tensor((config.vocab_size, config.hidden_size), False) * 3
    return Weights(embed, tensor((config.hidden_size,), True), head, layers)


def tokens_of(count: int, seed: int = 1) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCAB, (count,), generator=generator).tolist()


@pytest.fixture(scope="session")
def pair() -> Callable[..., Pair]:
    made: dict[tuple[object, ...], Pair] = {}

    def make(
        name: str = "llama",
        bits: TraceBits = 4,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Pair:
        key = (name, bits, device, dtype)
        found = made.get(key)
        if found is None:
            config = ModelConfig(**(BASE | FAMILIES[name]))
            weights = random_weights(config)
            host = Decoder(config, weights)
            ours = DeviceDecoder(config, weights, dtype=dtype, device=device)
            prefix = encode_prefix(host, tokens_of(5, 2))
            payloads = []
            for index, count in enumerate((33, 7, 64, 20)):
                cache = host.new_cache(100)
                cache.load_prefix(prefix)
                host.prefill(tokens_of(count, 10 + index), cache)
                payloads.append(encode_kv([cache.snapshot(5, 5 + count)], bits))
            pool = DevicePool(config, bits, budget_bytes=1 << 22, device=device)
            found = made[key] = Pair(config, weights, host, ours, prefix, payloads, pool)
        return found

    return make
