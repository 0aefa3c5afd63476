"""Hybrid models as files: `hybrid.json` (format version and configuration) and `model.safetensors`."""

import json
import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mnemos.attention.patterns.hybrid import HybridModel
from mnemos.attention.patterns.hybrid_config import HybridConfig
from mnemos.errors import InvalidWeightsError, UnknownModelError

CONFIG, TENSORS = "hybrid.json", "model.safetensors"


def save_model(model: HybridModel, directory: Path) -> None:
    """Writes the two files, each whole or not at all; the tensors first. Raises OSError of the disk."""
    directory.mkdir(parents=True, exist_ok=True)
    save_tensors(directory / TENSORS, dict(model.state_dict()))
    save_text(directory / CONFIG, json.dumps(model.config.to_json(), indent=2))


def load_model(directory: Path) -> HybridModel:
    """The model on the CPU. Raises UnknownModelError, or InvalidWeightsError for a broken one."""
    path = directory / CONFIG
    if not path.is_file():
        raise UnknownModelError(f"{directory} is no hybrid model: it has no {CONFIG}")
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidWeightsError(f"{path} can't be read ({error}); restore it from a copy") from error
    if not isinstance(described, dict):
        raise InvalidWeightsError(f"{path} is not a JSON object; restore it from a copy")
    model = HybridModel(HybridConfig.from_json(described))
    tensors = load_tensors(directory / TENSORS)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        odd = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        raise InvalidWeightsError(
            f"{directory / TENSORS} does not belong to {CONFIG}: {odd[0]} is {found.get(odd[0], 'absent')} "
            f"and should be {expected.get(odd[0], 'absent')}"
        )
    model.load_state_dict(tensors)
    return model


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file, durable and whole or not there. Raises OSError of the disk."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, part)
        _into_place(part, path)
    except SafetensorError as error:
        raise OSError(f"{path} can't be written ({error})") from error
    finally:
        part.unlink(missing_ok=True)


def save_text(path: Path, text: str) -> None:
    """As `save_tensors`, for text."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        _into_place(part, path)
    finally:
        part.unlink(missing_ok=True)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Raises InvalidWeightsError for a file that is missing, truncated or damaged."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InvalidWeightsError(f"{path} can't be read ({error}); use another copy of it") from error


def _into_place(part: Path, path: Path) -> None:
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
