"""What was measured about a model once: which heads retrieve, how cold to read memories, how to fuse routing
signals.

Calibrations are small JSON files. The one of the default model ships with the package, `mnemos model
calibrate` makes one for any other; a model without one works with `Calibration.uncalibrated`, and says that
it does.
"""

from functools import lru_cache
from importlib.resources import files

from pydantic import BaseModel, ConfigDict, Field

from mnemos.attention.config import ModelConfig
from mnemos.attention.projection import Projection, Vectors
from mnemos.errors import ModelError

FORMAT_VERSION = 4  # 1 had no `measured`, 2 no `vectors`, 3 no `embedder`


class ReadingTemperature(BaseModel):
    """How up to `memories` memories are read: constants of adaptive parallel encoding, and their places."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    memories: int
    temperature: float = Field(gt=0, le=2)
    mass_scale: float = Field(gt=0, le=2)
    stride: float = Field(
        default=0.0, ge=0, le=1, description="how far a memory starts behind the one before, in its lengths"
    )


class Measured(BaseModel):
    """What a calibration was chosen on and what it reached on conversations that had no part in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    data: dict[str, str] = Field(description="file name -> SHA-256 of what it was chosen on")
    held_out: dict[str, str] = Field(description="the same of what it was tried on, where that has own files")
    conversations: dict[str, int] = Field(description="by part: training, held_out")
    questions: dict[str, int] = Field(description="by part: training, held_out")
    memories: dict[str, int] = Field(description="by part: training, held_out")
    recall: dict[str, dict[str, dict[str, float]]] = Field(
        description="router -> file name or `mean` -> recall at 1, 5, 10, 20, and mrr; on the held-out part"
    )
    unrelated: dict[str, float] = Field(
        description="messages the recall threshold was found with, and the share of them over it"
    )
    reading: dict[str, dict[str, float]] = Field(
        description="memories -> loss per answer token: none, text, plain (T = S = 1), paged; held out"
    )


class Calibration(BaseModel):
    """Constants of one model, never of a bank: a statistic of the bank would remember what was erased."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    version: int = 1
    calibrated: bool = True
    fingerprint: str = Field(default="", description="of the model it was measured on; of any when empty")
    key_heads: tuple[tuple[int, int], ...] = Field(
        min_length=1, description="(layer, query head) of each retrieval head"
    )
    hidden_layer: int | None = Field(
        default=None, description="layer whose input is averaged for the hidden signal"
    )
    hidden_centre: tuple[float, ...] = Field(
        default=(), description="mean of that input on the calibration text"
    )
    weights: dict[str, float] = Field(description="signal -> weight in the fused score")
    recall_threshold: float = Field(
        0.0, description="z-score of the mass that a memory with no word of the query needs to be read"
    )
    reading: tuple[ReadingTemperature, ...] = Field(min_length=1, description="by rising number of memories")
    notes: str = ""
    measured: Measured | None = None
    vectors: Vectors | None = Field(default=None, description="of a trained router")
    embedder: str = Field(default="", description="sentence encoder whose vectors are a signal, if any")

    def reading_for(self, memories: int) -> ReadingTemperature:
        """The constants for that many memories: those of the nearest row that is no smaller, or the last."""
        for row in self.reading:
            if memories <= row.memories:
                return row
        return self.reading[-1]

    def reads_other_keys(self, other: "Calibration") -> bool:
        """Whether traces made with the other one lack what this one reads."""
        return (self.key_heads, self.hidden_layer, self.hidden_centre) != (
            other.key_heads,
            other.hidden_layer,
            other.hidden_centre,
        )

    def check_fits(self, config: ModelConfig, fingerprint: str | None = None) -> None:
        """Raises ModelError when this was measured on another model than that of `config`."""
        if fingerprint is not None and self.fingerprint not in ("", fingerprint):
            raise ModelError(
                f"the calibration is of another model ({self.fingerprint[:8]}), not of {config.name} "
                f"({fingerprint[:8]}); calibrate {config.name} itself"
            )
        strange = [(layer, head) for layer, head in self.key_heads
                   if not (0 <= layer < config.layers and 0 <= head < config.heads)]  # fmt: skip
        if strange:
            raise ModelError(
                f"the calibration is of another model: it names head {strange[0][1]} of layer "
                f"{strange[0][0]}, {config.name} has {config.layers} layers of {config.heads} heads"
            )
        is_inside = self.hidden_layer is None or 0 <= self.hidden_layer < config.layers
        if not is_inside or len(self.hidden_centre) not in (0, config.hidden_size):
            raise ModelError(
                f"the calibration is of another model: its hidden layer or centre doesn't fit {config.name}"
            )

        if self.vectors is not None:
            if self.vectors.layer >= config.layers:
                raise ModelError(
                    f"the calibration is of another model: its router reads layer {self.vectors.layer}, "
                    f"{config.name} has {config.layers}"
                )
            Projection(self.vectors, config.hidden_size)

    @classmethod
    def uncalibrated(cls, config: ModelConfig) -> "Calibration":
        """Safe defaults: the first head of each KV head of a layer at three fifths of the depth.

        Where some layers see only a window it is the nearest one that sees everything.
        """
        depth = int(config.layers * 0.6)
        whole = [layer for layer in range(config.layers) if layer not in config.sliding_layers]
        layer = min(whole or range(config.layers), key=lambda layer: abs(layer - depth))
        group = config.heads // config.kv_heads
        return cls(
            calibrated=False,
            key_heads=tuple((layer, kv * group) for kv in range(min(config.kv_heads, 2))),
            weights={"lexical": 1.0, "mass": 0.5, "speaker": 0.5, "neighbours": 0.2},
            recall_threshold=3.3,
            reading=(ReadingTemperature(memories=1_000_000, temperature=0.9, mass_scale=0.9),),
            notes="not calibrated",
        )


@lru_cache
def shipped() -> dict[str, str]:
    """Model name -> JSON text of each calibration in the package."""
    folder = files("mnemos.attention").joinpath("calibrations")
    return {
        entry.name.removesuffix(".json"): entry.read_text("utf-8")
        for entry in folder.iterdir()
        if entry.name.endswith(".json")
    }


def for_model(name: str, config: ModelConfig, fingerprint: str | None = None) -> Calibration:
    """The shipped calibration of a model, or safe defaults where there is none.

    A name alone proves nothing: with a `fingerprint` only a calibration of that very model is taken.
    """
    text = shipped().get(name)
    if text is None:
        return Calibration.uncalibrated(config)
    calibration = Calibration.model_validate_json(text)
    if fingerprint is not None and calibration.fingerprint not in ("", fingerprint):
        return Calibration.uncalibrated(config)
    calibration.check_fits(config)
    return calibration
