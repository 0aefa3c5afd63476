"""A hybrid that goes on from a pretrained decoder: projections, MLPs, norms and embeddings are taken over.

A pattern with projections of the same shapes gets those of the layer it replaces; whatever else it has (a
router, a pooled reading) is new and has to be trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mnemos.attention.config import ModelConfig
from mnemos.attention.patterns.hybrid import HybridModel
from mnemos.attention.patterns.hybrid_config import HybridConfig
from mnemos.attention.patterns.layer import HybridLayer
from mnemos.attention.patterns.mixer import MixerConfig
from mnemos.attention.patterns.projections import Projections
from mnemos.attention.weights import LayerWeights, Weights
from mnemos.errors import ModelError, UsageError


@dataclass(frozen=True, slots=True)
class Adopted:
    """A hybrid made from a checkpoint, and the names of its parameters that are not from there."""

    model: HybridModel
    fresh: tuple[str, ...]


def hybrid_from(config: ModelConfig, weights: Weights, layers: Sequence[str], **sizes: Any) -> Adopted:
    """A hybrid in fp32 with a checkpoint's weights, as from `models.load_weights`.

    Args:
        layers: the pattern of each of its layers.
        sizes: fields of `MixerConfig` that are the patterns' own (`window`, `top_k` and so on).

    Raises:
        ModelError: the checkpoint has parts that no hybrid has.
        UsageError: not as many patterns as it has layers.
    """
    _check(config)
    if len(layers) != config.layers:
        raise UsageError(
            f"model {config.name} has {config.layers} layers and {len(layers)} patterns are named; "
            "name one for each layer"
        )
    mixer = MixerConfig(
        dim=config.hidden_size,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        rope_theta=config.rope_theta,
        **sizes,
    )
    hybrid = HybridConfig(
        vocab=config.vocab_size,
        layers=tuple(layers),
        mixer=mixer,
        mlp_width=config.intermediate_size,
        norm_eps=config.rms_norm_eps,
        tie_embeddings=weights.lm_head is weights.embed,
    )
    model = HybridModel(hybrid)
    taken: set[Tensor] = set()

    def take(parameter: Tensor, tensor: Tensor) -> None:
        with torch.no_grad():
            parameter.copy_(tensor)
        taken.add(parameter)

    take(model.embed.weight, weights.embed)
    take(model.norm.weight, weights.norm)
    if model.head is not None:
        take(model.head.weight, weights.lm_head)
    for layer, given in zip(model.hybrid_layers, weights.layers, strict=True):
        for parameter, tensor in _pairs(layer, given, config):
            take(parameter, tensor)
    fresh = tuple(name for name, parameter in model.named_parameters() if parameter not in taken)
    return Adopted(model, fresh)


def _check(config: ModelConfig) -> None:
    foreign = {
        "biases of its projections": config.qkv_bias,
        "norms of queries and keys": config.qk_norm,
        "norms after attention and MLP": config.post_norms,
        "a scaled RoPE": config.rope_scaling is not None,
        "layers without RoPE": bool(config.nope_layers),
        "layers that see a window": bool(config.sliding_layers),
        "another activation than SiLU": config.activation != "silu",
        "scaled embeddings": config.embedding_scale != 1.0,
        "a scale of scores of its own": config.attention_scale is not None,
    }
    if found := [what for what, has in foreign.items() if has]:
        raise ModelError(
            f"model {config.name} has {found[0]}, which hybrids do not have; start from a plain Llama "
            "such as smollm2-135m"
        )


def _pairs(layer: HybridLayer, given: LayerWeights, config: ModelConfig) -> list[tuple[Tensor, Tensor]]:
    """Parameters of a layer with the checkpoint's tensors for them."""
    pairs = [
        (layer.mixer_norm.weight, given.attn_norm),
        (layer.mlp_norm.weight, given.mlp_norm),
        (layer.mlp.gate.weight, given.gate),
        (layer.mlp.up.weight, given.up),
        (layer.mlp.down.weight, given.down),
    ]
    projections = getattr(layer.mixer, "projections", None)
    if isinstance(projections, Projections):
        tensors = [
            (projections.query.weight, pair_neighbours(given.q, config.heads)),
            (projections.key.weight, pair_neighbours(given.k, config.kv_heads)),
            (projections.value.weight, given.v),
            (projections.out.weight, given.o),
        ]
        if all(parameter.shape == tensor.shape for parameter, tensor in tensors):
            pairs += tensors
    return pairs


def pair_neighbours(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head from Hugging Face's halves (x0.. x_{d/2}..) to the neighbours that mixers rotate."""
    out, inner = weight.shape
    return weight.view(heads, 2, out // heads // 2, inner).transpose(1, 2).reshape(out, inner)
