"""Metadata of GGUF files (format: ggml docs/gguf.md) to a `ModelConfig`; families go by llama.cpp's names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mnemos.attention.config import GEMMA3, LLAMA, QWEN2, QWEN3, SMOLLM3, ModelConfig, RopeScaling
from mnemos.attention.rope import yarn_attention_factor
from mnemos.attention.tokenizer_source import TokenizerSource
from mnemos.errors import InvalidWeightsError

# Mistral's files say llama.
SUPPORTED_GGUF_ARCHITECTURES = (GEMMA3, LLAMA, QWEN2, QWEN3, SMOLLM3)
_FRESH = "fetch or convert it again"
_GEMMA3_LOCAL_THETA, _GEMMA3_PATTERN, _GEMMA3_27B_LAYERS = 10000.0, 6, 62
_SMOLLM3_NOPE_INTERVAL = 4


@dataclass(frozen=True, slots=True)
class GgufMetadata:
    """The keys of one architecture in a file's metadata."""

    name: str
    architecture: str
    values: Mapping[str, Any]
    rope_factors: tuple[float, ...] = field(default=())  # of the tensor rope_freqs.weight

    @classmethod
    def of(cls, name: str, values: Mapping[str, Any], rope_factors: tuple[float, ...]) -> "GgufMetadata":
        """Raises InvalidWeightsError when the architecture is not supported."""
        architecture = values.get("general.architecture", "absent")
        if architecture not in SUPPORTED_GGUF_ARCHITECTURES:
            raise InvalidWeightsError(
                f"model {name}: architecture '{architecture}' is not supported "
                f"(supported: {', '.join(SUPPORTED_GGUF_ARCHITECTURES)})"
            )
        return cls(name, architecture, values, rope_factors)

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(f"{self.architecture}.{key}", default)

    def need(self, key: str) -> Any:
        if (value := self.get(key)) is None:
            raise InvalidWeightsError(
                f"model {self.name}: the file doesn't say its {self.architecture}.{key}; {_FRESH}"
            )
        return value


def config_from_metadata(
    metadata: GgufMetadata, source: TokenizerSource, *, rows: int, tie_embeddings: bool
) -> ModelConfig:
    """The shape of the model; `rows` is the number of its embeddings.

    Raises InvalidWeightsError when the file doesn't say it, or asks for what is not supported.
    """
    name, family = metadata.name, metadata.architecture
    if metadata.get("expert_count", 0):
        raise InvalidWeightsError(f"model {name}: mixtures of experts are not supported")
    layers = int(metadata.need("block_count"))
    heads, hidden = int(metadata.need("attention.head_count")), int(metadata.need("embedding_length"))
    head_dim = int(metadata.get("attention.key_length", hidden // max(heads, 1)))
    for key in ("rope.dimension_count", "attention.value_length"):
        if metadata.get(key, head_dim) != head_dim:
            raise InvalidWeightsError(
                f"model {name}: a {key} other than the head size {head_dim} is not supported"
            )
    positions = int(metadata.need("context_length"))
    gemma = family == GEMMA3
    return ModelConfig(
        name=name,
        architecture=family,
        vocab_size=rows,
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        kv_heads=int(metadata.get("attention.head_count_kv", heads)),
        head_dim=head_dim,
        intermediate_size=int(metadata.need("feed_forward_length")),
        # The file keeps fp32; the nearest short decimal is what the model was trained with.
        rms_norm_eps=float(f"{metadata.need('attention.layer_norm_rms_epsilon'):.6g}"),
        rope_theta=float(metadata.get("rope.freq_base", 10000.0)),
        max_positions=positions,
        tie_embeddings=tie_embeddings,
        bos_id=source.bos_id,
        eos_ids=source.eos_ids,
        rope_scaling=_scaling(metadata, positions),
        local_rope_theta=float(metadata.get("rope.freq_base_swa", _GEMMA3_LOCAL_THETA)) if gemma else None,
        window=int(metadata.need("attention.sliding_window")) if gemma else None,
        sliding_layers=_gemma3_sliding_layers(metadata, layers) if gemma else (),
        nope_layers=_nope_layers(layers) if family == SMOLLM3 else (),
        qkv_bias=family == QWEN2,
        qk_norm=family in (QWEN3, GEMMA3),
        post_norms=gemma,
        activation=_activation(family),
        embedding_scale=hidden**0.5 if gemma else 1.0,
        attention_scale=_gemma3_scale(layers, hidden, heads, head_dim) if gemma else None,
    )


def _activation(family: str) -> Literal["silu", "gelu_tanh"]:
    return "gelu_tanh" if family == GEMMA3 else "silu"


def _nope_layers(layers: int) -> tuple[int, ...]:
    return tuple(range(_SMOLLM3_NOPE_INTERVAL - 1, layers, _SMOLLM3_NOPE_INTERVAL))


def _gemma3_scale(layers: int, hidden: int, heads: int, head_dim: int) -> float:
    """Files don't say the scale of scores: all sizes take the head's but the largest, known by its depth."""
    return float((hidden // heads if layers == _GEMMA3_27B_LAYERS else head_dim) ** -0.5)


def _gemma3_sliding_layers(metadata: GgufMetadata, layers: int) -> tuple[int, ...]:
    pattern = metadata.get("attention.sliding_window_pattern", _GEMMA3_PATTERN)
    if isinstance(pattern, list):  # a flag per layer
        return tuple(layer for layer, is_sliding in enumerate(pattern[:layers]) if is_sliding)
    return tuple(layer for layer in range(layers) if (layer + 1) % max(int(pattern), 1))


def _scaling(metadata: GgufMetadata, positions: int) -> RopeScaling | None:
    kind = metadata.get("rope.scaling.type", "none")
    if metadata.rope_factors:
        if kind not in ("none", "linear"):
            raise InvalidWeightsError(
                f"model {metadata.name}: rope scaling '{kind}' with rope_freqs.weight is not supported"
            )
        return RopeScaling("factors", factors=metadata.rope_factors)
    if kind == "none":
        return None
    factor = float(metadata.get("rope.scaling.factor", 1.0))
    if kind == "linear":
        return RopeScaling("linear", factor=factor)
    if kind != "yarn":
        raise InvalidWeightsError(
            f"model {metadata.name}: rope scaling '{kind}' is not supported (supported: none, linear, yarn)"
        )
    return RopeScaling(
        "yarn",
        factor=factor,
        original_positions=int(metadata.get("rope.scaling.original_context_length", positions)),
        beta_fast=float(metadata.get("rope.scaling.yarn_beta_fast", 32.0)),
        beta_slow=float(metadata.get("rope.scaling.yarn_beta_slow", 1.0)),
        attention_factor=yarn_attention_factor(factor) * float(metadata.get("rope.scaling.attn_factor", 1.0)),
    )
