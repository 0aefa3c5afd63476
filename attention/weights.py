"""Weights as loaders hand them over: CPU tensors in Hugging Face layout, named once for every source."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from mnemos.attention.config import ModelConfig, layer_shapes, router_shapes
from mnemos.errors import InvalidWeightsError

EMBED_NAME = "model.embed_tokens.weight"
NORM_NAME = "model.norm.weight"
HEAD_NAME = "lm_head.weight"
_LAYER_NAMES = {
    "attn_norm": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "router_q": "self_attn.router_q_proj.0.weight",
    "router_k": "self_attn.router_k_proj.0.weight",
}
# With norms after attention and MLP as well, what otherwise names the one before the MLP names another.
_POST_NORM_NAMES = {
    "post_attn_norm": "post_attention_layernorm.weight",
    "mlp_norm": "pre_feedforward_layernorm.weight",
    "post_mlp_norm": "post_feedforward_layernorm.weight",
}


@dataclass(slots=True)
class LayerWeights:
    """One decoder layer. Matrices are [out, in]; q and k rows are in Hugging Face (rotate-half) order.

    A norm's weight is what the normed input is multiplied by; a family that stores it less one has had that
    one added by its loader. What a family doesn't have is None.
    """

    attn_norm: Tensor  # [hidden]
    q: Tensor  # [heads * head_dim, hidden]
    k: Tensor  # [kv_heads * head_dim, hidden]
    v: Tensor  # [kv_heads * head_dim, hidden]
    o: Tensor  # [hidden, heads * head_dim]
    mlp_norm: Tensor  # [hidden]
    gate: Tensor  # [intermediate, hidden]
    up: Tensor  # [intermediate, hidden]
    down: Tensor  # [hidden, intermediate]
    q_bias: Tensor | None = None  # [heads * head_dim]
    k_bias: Tensor | None = None  # [kv_heads * head_dim]
    v_bias: Tensor | None = None  # [kv_heads * head_dim]
    q_norm: Tensor | None = None  # [head_dim]
    k_norm: Tensor | None = None  # [head_dim]
    post_attn_norm: Tensor | None = None  # [hidden]
    post_mlp_norm: Tensor | None = None  # [hidden]
    router_q: Tensor | None = None  # [heads * head_dim, hidden]
    router_k: Tensor | None = None  # [kv_heads * head_dim, hidden]


@dataclass(slots=True)
class Weights:
    """All tensors of a decoder. `lm_head` is the very tensor `embed` when the two are tied."""

    embed: Tensor  # [vocab, hidden]
    norm: Tensor  # [hidden]
    lm_head: Tensor  # [vocab, hidden]
    layers: list[LayerWeights]

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor with its Hugging Face name; a tied head is left out."""
        yield EMBED_NAME, self.embed
        yield NORM_NAME, self.norm
        if self.lm_head is not self.embed:
            yield HEAD_NAME, self.lm_head
        for index, layer in enumerate(self.layers):
            for field in fields(layer):
                tensor = getattr(layer, field.name)
                if tensor is not None:
                    post_norms = layer.post_attn_norm is not None
                    yield f"model.layers.{index}.{layer_name(field.name, post_norms=post_norms)}", tensor


def layer_name(field: str, *, post_norms: bool) -> str:
    """The Hugging Face name, inside its layer, of a field of `LayerWeights`."""
    return (_LAYER_NAMES | _POST_NORM_NAMES if post_norms else _LAYER_NAMES)[field]


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The Hugging Face name and the shape of every tensor that a checkpoint of `config` has to hold."""
    shapes: dict[str, tuple[int, ...]] = {EMBED_NAME: (config.vocab_size, config.hidden_size)}
    shapes[NORM_NAME] = (config.hidden_size,)
    if not config.tie_embeddings:
        shapes[HEAD_NAME] = shapes[EMBED_NAME]
    for index in range(config.layers):
        for field, shape in (layer_shapes(config) | router_shapes(config, index)).items():
            shapes[f"model.layers.{index}.{layer_name(field, post_norms=config.post_norms)}"] = shape
    return shapes


def assemble(config: ModelConfig, fetch: Callable[[str], Tensor], *, check_finite: bool = True) -> Weights:
    """Builds `Weights` from `fetch(hugging_face_name)`, checking the shape and finiteness of every tensor.

    Raises InvalidWeightsError naming the tensor that is misshapen or holds NaN or infinity.
    """
    loaded: dict[str, Tensor] = {}
    for name, shape in tensor_shapes(config).items():
        tensor = fetch(name)
        check_shape(config.name, name, tuple(tensor.shape), shape)
        if check_finite and not is_finite(tensor):
            raise InvalidWeightsError(
                f"model {config.name}: tensor {name} holds NaN or infinity; "
                "the file is damaged, fetch it again"
            )
        loaded[name] = tensor
    layers = []
    for index in range(config.layers):
        fields_of = (*layer_shapes(config), *router_shapes(config, index))
        names = {field: layer_name(field, post_norms=config.post_norms) for field in fields_of}
        found = {field: loaded[f"model.layers.{index}.{name}"] for field, name in names.items()}
        layers.append(LayerWeights(**found))
    embed = loaded[EMBED_NAME]
    return Weights(embed, loaded[NORM_NAME], loaded.get(HEAD_NAME, embed), layers)


def check_shape(model: str, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """Raises InvalidWeightsError when a tensor's shape isn't what the configuration asks for."""
    if found != wanted:
        raise InvalidWeightsError(
            f"model {model}: tensor {name} has shape {list(found)}, the configuration "
            f"asks for {list(wanted)}; weights and configuration don't belong together"
        )


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite. A sum carries either through at memory speed; only a sum that
    overflowed needs the slow look."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())
