"""The shape of a decoder: what a checkpoint says about itself, in one place.

Families differ in a handful of fields. A field that a family doesn't need keeps its default, and a default is
left out of the JSON form: fingerprints and kept conversions of other families don't move when one is added.
"""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal

from mnemos.attention.msa_config import MsaConfig
from mnemos.errors import InvalidWeightsError

LLAMA = "llama"
MISTRAL = "mistral"
QWEN2 = "qwen2"
QWEN3 = "qwen3"
GEMMA3 = "gemma3"
SMOLLM3 = "smollm3"
MSA = "msa"
SUPPORTED_ARCHITECTURES = (GEMMA3, LLAMA, MISTRAL, MSA, QWEN2, QWEN3, SMOLLM3)

RopeKind = Literal["linear", "llama3", "yarn", "factors"]
SUPPORTED_ROPE_SCALINGS: tuple[RopeKind, ...] = ("linear", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How a family stretches its rotary frequencies; the fields that a kind doesn't name are unused.

    `factors` holds a divisor per frequency, as GGUF files of Llama 3 do. `attention_factor` multiplies the
    rotated queries and keys (YaRN, arXiv 2309.00071).
    """

    kind: RopeKind
    factor: float = 1.0
    original_positions: int = 0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True
    factors: tuple[float, ...] = ()

    def check(self, model: str) -> None:
        """Raises InvalidWeightsError when a constant is outside what its kind can work with."""
        if self.kind == "factors":
            if min(self.factors, default=0.0) <= 0:
                raise InvalidWeightsError(f"model {model}: its rope factors must all be above zero")
            return
        if self.factor <= 0 or self.attention_factor <= 0:
            raise InvalidWeightsError(
                f"model {model}: rope scaling '{self.kind}' has the factor {self.factor}; "
                "it must be above zero"
            )
        if self.kind in ("llama3", "yarn") and self.original_positions < 1:
            raise InvalidWeightsError(
                f"model {model}: rope scaling '{self.kind}' doesn't say its original_max_position_embeddings"
            )
        if self.kind == "llama3" and not 0 < self.low_frequency_factor < self.high_frequency_factor:
            raise InvalidWeightsError(
                f"model {model}: rope scaling 'llama3' needs 0 < low_freq_factor < high_freq_factor"
            )


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes and constants of one checkpoint. Sizes are counts of elements; `max_positions` is in tokens."""

    name: str
    architecture: str
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    rope_theta: float
    max_positions: int
    tie_embeddings: bool
    bos_id: int | None
    eos_ids: tuple[int, ...]
    rope_scaling: RopeScaling | None = None
    local_rope_theta: float | None = None  # unscaled base of the sliding layers, where it is another
    window: int | None = None  # tokens that a sliding layer sees, the current one included
    sliding_layers: tuple[int, ...] = ()
    nope_layers: tuple[int, ...] = ()  # layers without rotary embedding
    qkv_bias: bool = False
    qk_norm: bool = False  # RMSNorm of each query and key head, before RoPE
    post_norms: bool = False  # RMSNorm of what attention and MLP add, before it is added
    activation: Literal["silu", "gelu_tanh"] = "silu"
    embedding_scale: float = 1.0
    attention_scale: float | None = None  # of scores; head_dim ** -0.5 without it
    msa: MsaConfig | None = None  # of a checkpoint that reads memories pooled

    def __post_init__(self) -> None:
        for field in ("vocab_size", "hidden_size", "layers", "heads", "kv_heads", "head_dim",
                      "intermediate_size", "max_positions"):  # fmt: skip
            if getattr(self, field) < 1:
                raise InvalidWeightsError(
                    f"model {self.name}: {field} is {getattr(self, field)}; "
                    "the file is corrupt or not a decoder"
                )
        if self.heads % self.kv_heads:
            raise InvalidWeightsError(
                f"model {self.name}: {self.heads} heads can't share {self.kv_heads} KV heads evenly"
            )
        if self.head_dim % 2:
            raise InvalidWeightsError(f"model {self.name}: head_dim {self.head_dim} is odd; RoPE needs pairs")
        if self.sliding_layers and (self.window is None or self.window < 1):
            raise InvalidWeightsError(
                f"model {self.name}: it has sliding layers and a sliding_window of {self.window}"
            )
        for theta in (self.rope_theta, self.local_rope_theta):
            if theta is not None and theta <= 0:
                raise InvalidWeightsError(f"model {self.name}: rope_theta is {theta}; it must be above zero")
        if self.rope_scaling is not None:
            self.rope_scaling.check(self.name)
            if self.rope_scaling.factors and len(self.rope_scaling.factors) != self.head_dim // 2:
                raise InvalidWeightsError(
                    f"model {self.name}: {len(self.rope_scaling.factors)} rope factors don't fit heads of "
                    f"{self.head_dim}"
                )

    @property
    def score_scale(self) -> float:
        """What scores of queries and keys are multiplied by."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    @property
    def read_mode(self) -> Literal["full-resolution", "pooled"]:
        """How memories reach this model: as the checkpoint was trained, never by choice."""
        return "full-resolution" if self.msa is None else "pooled"

    def to_json(self) -> dict[str, Any]:
        """A JSON-able form without the fields at their default; `from_json` reads it back."""
        described = asdict(self)
        for field in fields(self):
            if field.default is not MISSING and getattr(self, field.name) == field.default:
                del described[field.name]
        return described | {"eos_ids": list(self.eos_ids)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ModelConfig":
        tuples = {key: tuple(data[key]) for key in _TUPLES if key in data}
        scaling = data.get("rope_scaling")
        if scaling is not None:
            scaling = RopeScaling(**(scaling | {"factors": tuple(scaling["factors"])}))
        msa = None if data.get("msa") is None else MsaConfig.from_json(data["msa"])
        return cls(**{**data, **tuples, "rope_scaling": scaling, "msa": msa})


_TUPLES = ("eos_ids", "sliding_layers", "nope_layers")


def layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of one layer, by the names of `LayerWeights`. Matrices are [out, in]."""
    hidden, inner = config.hidden_size, config.intermediate_size
    query, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,),
        "q": (query, hidden),
        "k": (kv, hidden),
        "v": (kv, hidden),
        "o": (hidden, query),
        "mlp_norm": (hidden,),
        "gate": (inner, hidden),
        "up": (inner, hidden),
        "down": (hidden, inner),
    }
    if config.qkv_bias:
        shapes |= {"q_bias": (query,), "k_bias": (kv,), "v_bias": (kv,)}
    if config.qk_norm:
        shapes |= {"q_norm": (config.head_dim,), "k_norm": (config.head_dim,)}
    if config.post_norms:
        shapes |= {"post_attn_norm": (hidden,), "post_mlp_norm": (hidden,)}
    return shapes


def router_shapes(config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
    """As `layer_shapes`, of the router projections; only layers of an MSA checkpoint that route have any."""
    msa = config.msa
    if msa is None or not msa.decouple_router or layer not in msa.router_layers:
        return {}
    query, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    return {"router_q": (query, config.hidden_size), "router_k": (kv, config.hidden_size)}
