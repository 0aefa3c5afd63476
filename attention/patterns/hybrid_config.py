"""The shape of a hybrid model: which pattern each layer mixes with, and the sizes around it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from mnemos.attention.patterns.mixer import MixerConfig
from mnemos.attention.patterns.registry import pattern
from mnemos.errors import InvalidWeightsError

FORMAT_VERSION = 1
"""Of a saved model: the JSON beside its tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HybridConfig:
    """A decoder whose layers mix by the patterns in `layers`, first to last. Sizes are counts of elements."""

    vocab: int
    layers: tuple[str, ...]
    mixer: MixerConfig
    mlp_width: int
    norm_eps: float = 1e-5
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError: no layer, a pattern that there is not, or a size below one."""
        if not self.layers:
            raise ValueError("a hybrid needs at least one layer; name its patterns, such as 'window,msa'")
        for name in self.layers:
            pattern(name)
        for size in ("vocab", "mlp_width"):
            if getattr(self, size) < 1:
                raise ValueError(f"{size} must be at least 1, not {getattr(self, size)}")

    def to_json(self) -> dict[str, Any]:
        """A JSON-able form; `from_json` reads it back."""
        return {"version": FORMAT_VERSION, **asdict(self), "layers": list(self.layers)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "HybridConfig":
        """Raises InvalidWeightsError: another version, or fields that make no model."""
        if data.get("version") != FORMAT_VERSION:
            raise InvalidWeightsError(
                f"the model is of format version {data.get('version')!r} and this Mnemos reads "
                f"{FORMAT_VERSION}; use the Mnemos that made it, or train it anew"
            )
        try:
            mixer = MixerConfig(**data["mixer"])
            rest = {field.name: data[field.name] for field in fields(cls) if field.name in data}
            return cls(**{**rest, "layers": tuple(data["layers"]), "mixer": mixer})
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidWeightsError(f"the model's configuration makes no model ({error})") from error
