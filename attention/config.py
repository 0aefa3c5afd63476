"""The shape of a decoder: what a checkpoint says about itself, in one place."""

from dataclasses import asdict, dataclass
from typing import Any

from mnemos.errors import InvalidWeightsError

LLAMA = "llama"
SUPPORTED_ARCHITECTURES = (LLAMA,)


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

    def to_json(self) -> dict[str, Any]:
        """A JSON-able form; `from_json` reads it back."""
        return asdict(self) | {"eos_ids": list(self.eos_ids)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ModelConfig":
        return cls(**(data | {"eos_ids": tuple(data["eos_ids"])}))


def layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of one layer, by the names of `LayerWeights`. Matrices are [out, in]."""
    hidden, inner = config.hidden_size, config.intermediate_size
    query, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    return {
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
