"""Where a run stands, on disk: a directory for each saved step, whole or not there.

    step-00000200/
      hybrid.json, model.safetensors    the model, as `HybridModel.load` takes it
      optimiser.safetensors             moments, by parameter
      random.safetensors                states of the random generators
      training.json                     format version, settings, progress; written last

There are numbers in them and no pickled code.
"""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mnemos.attention.patterns.hybrid import HybridModel
from mnemos.attention.patterns.saving import load_tensors, save_tensors, save_text
from mnemos.errors import InvalidWeightsError, NotFoundError

VERSION = 1
_NAME = re.compile(r"step-(\d{8})")
_PROGRESS, _OPTIMISER, _RANDOM = "training.json", "optimiser.safetensors", "random.safetensors"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was saved, beside the model itself."""

    path: Path
    progress: dict[str, Any]
    optimiser: dict[str, Tensor]
    random: dict[str, Tensor]

    def model(self) -> HybridModel:
        """The model on the CPU."""
        return HybridModel.load(self.path)


def save_checkpoint(
    folder: Path,
    step: int,
    model: HybridModel,
    optimiser: dict[str, Tensor],
    random: dict[str, Tensor],
    progress: dict[str, Any],
    *,
    keep: int,
) -> Path:
    """Writes the checkpoint of a step and removes all but the newest `keep`. Raises OSError of the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    part, path = folder / f".step-{step:08}.part", folder / f"step-{step:08}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        model.save(part)
        save_tensors(part / _OPTIMISER, optimiser)
        save_tensors(part / _RANDOM, random)
        save_text(part / _PROGRESS, json.dumps({"version": VERSION, **progress}))
        _sync(part)
        if path.exists():  # of an earlier run that went back behind it
            shutil.rmtree(path)
        part.rename(path)
        _sync(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    for old in _steps(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def latest(folder: Path) -> Checkpoint:
    """The newest checkpoint in a folder, or the folder itself if it is one.

    Raises:
        NotFoundError: there is none.
        InvalidWeightsError: it is damaged, or of another format version.
    """
    found = [folder] if (folder / _PROGRESS).is_file() else _steps(folder)
    if not found:
        raise NotFoundError(f"{folder} holds no checkpoint; name the directory that a training run wrote to")
    path = found[-1]
    try:
        progress = json.loads((path / _PROGRESS).read_text(encoding="utf-8"))
        version = progress.pop("version")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise InvalidWeightsError(
            f"checkpoint {path} is damaged ({error}); remove it, and an earlier one is used"
        ) from error
    if version != VERSION:
        raise InvalidWeightsError(
            f"checkpoint {path} is of format version {version!r} and this Mnemos reads {VERSION}; "
            "go on with the Mnemos that made it, or train anew"
        )
    return Checkpoint(path, progress, load_tensors(path / _OPTIMISER), load_tensors(path / _RANDOM))


def has_checkpoint(folder: Path) -> bool:
    """Whether `latest` would find one."""
    return (folder / _PROGRESS).is_file() or bool(_steps(folder))


def optimiser_tensors(model: HybridModel, optimiser: Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as `moment.parameter` -> tensor; what has not been stepped is not there."""
    return {
        f"{moment}.{name}": value
        for name, parameter in model.named_parameters()
        for moment, value in optimiser.state.get(parameter, {}).items()
    }


def restore_optimiser(model: HybridModel, optimiser: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Puts back what `optimiser_tensors` returned. Raises InvalidWeightsError when it doesn't belong here."""
    parameters = dict(model.named_parameters())
    optimiser.state.clear()
    for key, value in tensors.items():
        moment, _, name = key.partition(".")
        parameter = parameters.get(name)
        if parameter is None or (value.dim() and value.shape != parameter.shape):
            raise InvalidWeightsError(f"the optimiser's {key} belongs to another model; train anew")
        # Step counters stay on the CPU, where the optimiser makes them.
        place = parameter.device if value.dim() else value.device
        optimiser.state[parameter][moment] = value.detach().clone().to(place)


def random_tensors() -> dict[str, Tensor]:
    """States of torch's generators."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore_random(states: dict[str, Tensor]) -> None:
    """Puts back what `random_tensors` returned, as far as this machine has such devices."""
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            if f"cuda{index}" in states:
                torch.cuda.set_rng_state(states[f"cuda{index}"], index)


def _steps(folder: Path) -> list[Path]:
    """Checkpoints of a folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
