"""What was measured about a model once: which heads retrieve, how cold to read memories, how to fuse routing
signals.

Calibrations are small JSON files. The one of the default model ships with the package; another model works
with `Calibration.uncalibrated`, and says that it is.
"""

from functools import lru_cache
from importlib.resources import files

from pydantic import BaseModel, ConfigDict, Field

from mnemos.attention.config import ModelConfig


class ReadingTemperature(BaseModel):
    """Constants of adaptive parallel encoding for up to `memories` memories."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    memories: int
    temperature: float = Field(gt=0, le=2)
    mass_scale: float = Field(gt=0, le=2)


class Calibration(BaseModel):
    """Constants of one model, never of a bank: a statistic of the bank would remember what was erased."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 1
    calibrated: bool = True
    key_heads: tuple[tuple[int, int], ...] = Field(description="(layer, query head) of each retrieval head")
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
    reading: tuple[ReadingTemperature, ...] = Field(description="by rising number of memories")
    notes: str = ""

    def reading_for(self, memories: int) -> ReadingTemperature:
        """The constants for that many memories: those of the nearest row that is no smaller, or the last."""
        for row in self.reading:
            if memories <= row.memories:
                return row
        return self.reading[-1]

    @classmethod
    def uncalibrated(cls, config: ModelConfig) -> "Calibration":
        """Safe defaults: the first head of each KV head of a layer at three fifths of the depth."""
        layer = int(config.layers * 0.6)
        group = config.heads // config.kv_heads
        return cls(
            calibrated=False,
            key_heads=tuple((layer, kv * group) for kv in range(min(config.kv_heads, 2))),
            weights={"lexical": 1.0, "mass": 0.5},
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


def for_model(name: str, config: ModelConfig) -> Calibration:
    """The shipped calibration of a model name, or safe defaults where there is none."""
    text = shipped().get(name)
    return Calibration.uncalibrated(config) if text is None else Calibration.model_validate_json(text)
