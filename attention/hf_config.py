"""`config.json` of each supported family, in both generations of its form, to a `ModelConfig`."""

from collections.abc import Mapping
from typing import Any

from mnemos.attention.config import (
    GEMMA3,
    LLAMA,
    MISTRAL,
    MSA,
    QWEN2,
    QWEN3,
    SMOLLM3,
    SUPPORTED_ARCHITECTURES,
    SUPPORTED_ROPE_SCALINGS,
    ModelConfig,
    RopeScaling,
)
from mnemos.attention.msa_config import msa_config_from
from mnemos.attention.rope import yarn_attention_factor
from mnemos.attention.tokenizer_source import TokenizerSource
from mnemos.errors import InvalidWeightsError

# `model_type` -> family. A checkpoint of Gemma 3 that sees images holds its text model under `text_config`.
_FAMILIES = {
    "llama": LLAMA,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "gemma3_text": GEMMA3,
    "gemma3": GEMMA3,
    "smollm3": SMOLLM3,
    "msa": MSA,
}
# What a family's configuration leaves out when it has the value that the family was published with.
_DEFAULTS: dict[str, dict[str, Any]] = {
    LLAMA: {"max_position_embeddings": 2048},
    MISTRAL: {"max_position_embeddings": 131072, "sliding_window": 4096, "num_key_value_heads": 8},
    QWEN2: {"max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 28},
    QWEN3: {
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "head_dim": 128,
    },
    GEMMA3: {
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
        "sliding_window": 4096,
        "query_pre_attn_scalar": 256,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "hidden_activation": "gelu_pytorch_tanh",
    },
    SMOLLM3: {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "rope_theta": 2_000_000.0,
    },
}
_DEFAULTS[MSA] = _DEFAULTS[QWEN3]
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_REFUSED = ("attention_bias", "mlp_bias", "quantization_config", "final_logit_softcapping",
            "attn_logit_softcapping", "use_bidirectional_attention")  # fmt: skip


def text_model(described: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the text model alone, where `config.json` describes one that sees images too."""
    nested = described.get("text_config")
    if described.get("model_type") != "gemma3" or not isinstance(nested, dict):
        return dict(described)
    outer = {key: described[key] for key in ("eos_token_id", "bos_token_id") if key in described}
    return {**nested, **outer, "model_type": "gemma3_text"}


def config_from(name: str, described: Mapping[str, Any], source: TokenizerSource) -> ModelConfig:
    """The shape of the model called `name` out of its `config.json`.

    Raises InvalidWeightsError when the architecture, or something it asks for, is not supported.
    """
    model_type = described.get("model_type", "absent")
    family = _FAMILIES.get(model_type)
    if family is None:
        raise InvalidWeightsError(
            f"model {name}: architecture '{model_type}' is not supported "
            f"(supported: {', '.join(SUPPORTED_ARCHITECTURES)})"
        )
    if described.get("msa_config") is not None:
        if family not in (MSA, QWEN3):
            raise InvalidWeightsError(
                f"model {name}: msa_config on architecture '{model_type}' is not supported (supported: msa)"
            )
        family = MSA
    filled = _DEFAULTS[family] | {key: value for key, value in described.items() if value is not None}
    if "sliding_window" in described:  # here null means that there is none
        filled["sliding_window"] = described["sliding_window"]
    for key in _REFUSED:
        if filled.get(key):
            raise InvalidWeightsError(f"model {name}: {key} in its config.json is not supported")
    try:
        return _config(name, family, filled, source)
    except KeyError as error:
        raise InvalidWeightsError(f"model {name}: its config.json doesn't say its {error.args[0]}") from error
    except (TypeError, ValueError) as error:
        raise InvalidWeightsError(f"model {name}: its config.json is malformed ({error})") from error


def _config(name: str, family: str, filled: dict[str, Any], source: TokenizerSource) -> ModelConfig:
    heads, hidden = int(filled["num_attention_heads"]), int(filled["hidden_size"])
    layers = int(filled["num_hidden_layers"])
    positions = int(filled["max_position_embeddings"])
    full, local = _ropes(name, filled)
    scaling = _scaling(name, full, filled, positions)
    if scaling is not None and scaling.kind == "yarn" and "original_max_position_embeddings" in full:
        # People add YaRN to a configuration and leave the window of the model as it was trained.
        positions = max(positions, int(scaling.factor * scaling.original_positions))
    nope = _nope_layers(name, family, filled, layers)
    window, sliding = _sliding(name, family, filled, layers, nope)
    theta = float(full["rope_theta"])
    local_theta = float(local["rope_theta"])
    has_local_rope = bool(sliding) and local is not full and (scaling is not None or local_theta != theta)
    if family == MSA and sliding:
        raise InvalidWeightsError(f"model {name}: use_sliding_window in an MSA checkpoint is not supported")
    gemma = family == GEMMA3
    scalar = float(filled["query_pre_attn_scalar"]) if gemma else 0.0
    return ModelConfig(
        name=name,
        architecture=family,
        vocab_size=int(filled["vocab_size"]),
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        kv_heads=int(filled.get("num_key_value_heads") or heads),
        head_dim=int(filled.get("head_dim") or hidden // max(heads, 1)),
        intermediate_size=int(filled["intermediate_size"]),
        rms_norm_eps=float(filled.get("rms_norm_eps", 1e-6)),
        rope_theta=theta,
        max_positions=positions,
        tie_embeddings=bool(filled.get("tie_word_embeddings", False)),
        bos_id=source.bos_id,
        eos_ids=source.eos_ids,
        rope_scaling=scaling,
        local_rope_theta=local_theta if has_local_rope else None,
        window=window if sliding else None,
        sliding_layers=sliding,
        nope_layers=nope,
        qkv_bias=family == QWEN2,
        qk_norm=family in (QWEN3, GEMMA3, MSA),
        post_norms=gemma,
        activation=_activation(name, filled),  # type: ignore[arg-type]  # a value of _ACTIVATIONS
        embedding_scale=hidden**0.5 if gemma else 1.0,
        attention_scale=scalar**-0.5 if gemma else None,
        msa=msa_config_from(name, filled.get("msa_config") or {}, layers) if family == MSA else None,
    )


def _activation(name: str, filled: Mapping[str, Any]) -> str:
    named = filled.get("hidden_activation") or filled.get("hidden_act", "silu")
    if named not in _ACTIVATIONS:
        raise InvalidWeightsError(
            f"model {name}: activation '{named}' is not supported ({', '.join(sorted(_ACTIVATIONS))})"
        )
    return _ACTIVATIONS[named]


def _ropes(name: str, filled: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rope settings of full and of sliding layers, from where either generation of config.json keeps them."""
    theta = filled.get("rope_theta", 10000.0)
    scaling, parameters = filled.get("rope_scaling") or {}, filled.get("rope_parameters") or {}
    if not isinstance(scaling, dict) or not isinstance(parameters, dict):
        raise InvalidWeightsError(f"model {name}: rope settings in its config.json are malformed")
    by_layer = {key: parameters[key] for key in ("full_attention", "sliding_attention")
                if isinstance(parameters.get(key), dict)}  # fmt: skip
    full = {
        "rope_theta": theta,
        **(by_layer.get("full_attention", {}) if by_layer else parameters),
        **scaling,
    }
    if by_layer:
        local = {"rope_theta": filled.get("rope_local_base_freq", theta)}
        local |= by_layer.get("sliding_attention", {})
    elif "rope_local_base_freq" in filled:
        local = {"rope_theta": filled["rope_local_base_freq"]}
    else:
        local = full
    if local is not full and _kind(local) not in ("default", None):
        raise InvalidWeightsError(
            f"model {name}: rope scaling '{_kind(local)}' of sliding layers is not supported"
        )
    return full, local


def _kind(rope: Mapping[str, Any]) -> Any:
    return rope.get("rope_type", rope.get("type", "default"))


def _scaling(
    name: str, rope: Mapping[str, Any], filled: Mapping[str, Any], positions: int
) -> RopeScaling | None:
    kind = _kind(rope)
    if rope.get("partial_rotary_factor", filled.get("partial_rotary_factor", 1.0)) != 1.0:
        raise InvalidWeightsError(f"model {name}: partial_rotary_factor is not supported")
    if kind in ("default", None):
        return None
    if kind not in SUPPORTED_ROPE_SCALINGS:
        raise InvalidWeightsError(
            f"model {name}: rope scaling '{kind}' is not supported "
            f"(supported: default, {', '.join(SUPPORTED_ROPE_SCALINGS)})"
        )
    if kind == "linear":
        return RopeScaling("linear", factor=float(rope["factor"]))
    original = filled.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    original = int(original or positions)
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            factor=float(rope["factor"]),
            original_positions=original,
            low_frequency_factor=float(rope["low_freq_factor"]),
            high_frequency_factor=float(rope["high_freq_factor"]),
        )
    factor = float(rope.get("factor") or positions / original)
    attention = rope.get("attention_factor")
    if attention is None:
        mscale, all_dim = float(rope.get("mscale") or 0), float(rope.get("mscale_all_dim") or 0)
        attention = yarn_attention_factor(factor, mscale, all_dim)
    return RopeScaling(
        "yarn",
        factor=factor,
        original_positions=original,
        beta_fast=float(rope.get("beta_fast") or 32),
        beta_slow=float(rope.get("beta_slow") or 1),
        attention_factor=float(attention),
        truncate=bool(rope.get("truncate", True)),
    )


def _nope_layers(name: str, family: str, filled: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    """Layers without rotary embedding: zeros of `no_rope_layers`, or every fourth layer."""
    if family != SMOLLM3:
        return ()
    marked = filled.get("no_rope_layers")
    if marked is None:
        interval = int(filled.get("no_rope_layer_interval", 4))
        return tuple(range(interval - 1, layers, interval))
    if len(marked) < layers:
        raise InvalidWeightsError(
            f"model {name}: its no_rope_layers name {len(marked)} layers, it has {layers}"
        )
    return tuple(layer for layer in range(layers) if not marked[layer])


def _sliding(
    name: str, family: str, filled: Mapping[str, Any], layers: int, nope: tuple[int, ...]
) -> tuple[int | None, tuple[int, ...]]:
    """The window in tokens, and the layers that see only it."""
    window = filled.get("sliding_window")
    if family == LLAMA or window is None:
        return None, ()
    window = int(window)
    if family == MISTRAL:
        return window, tuple(range(layers))
    if family != GEMMA3 and not filled.get("use_sliding_window", False):
        return None, ()
    types = filled.get("layer_types")
    if types is not None:
        if strange := sorted(set(types) - {"full_attention", "sliding_attention"}):
            raise InvalidWeightsError(f"model {name}: layers of type '{strange[0]}' are not supported")
        if len(types) != layers:
            raise InvalidWeightsError(
                f"model {name}: its layer_types name {len(types)} layers, it has {layers}"
            )
        return window, tuple(layer for layer, kind in enumerate(types) if kind == "sliding_attention")
    if family == GEMMA3:
        pattern = int(filled.get("sliding_window_pattern", 6))
        return window, tuple(layer for layer in range(layers) if (layer + 1) % pattern)
    if family == SMOLLM3:
        return window, nope
    return window, tuple(range(min(int(filled["max_window_layers"]), layers), layers))
