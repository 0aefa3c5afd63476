"""A checkpoint with some of its tensors trained, beside the one that it came from."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mnemos.attention.patterns.saving import load_tensors
from mnemos.errors import InvalidWeightsError, UsageError

_SUFFIXES = {".json", ".jinja", ".model", ".txt"}  # what a model directory holds besides its weights


def require_new(directory: Path) -> None:
    """Raises UsageError unless a directory can be made there: told before the work, not after it."""
    folder = directory.absolute().parent
    if directory.exists() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(
            f"a trained checkpoint can't be written to {directory}; name a directory with --out that does "
            "not exist yet, in one that does"
        )


def save_trained(source: Path, directory: Path, trained: Mapping[str, Tensor]) -> None:
    """Writes `directory` as `source` is, with other values for the tensors in `trained`; whole or not there.

    A tensor keeps the dtype that it is stored in.

    Raises:
        InvalidWeightsError: the source can't be read, or lacks one of the tensors.
        OSError: the disk is full, or a directory is in the way.
    """
    part = directory.with_name(f".{directory.name}.{os.getpid()}.part")
    left = set(trained)
    try:
        part.mkdir()
        for path in sorted(source.iterdir()):
            if path.suffix == ".safetensors":
                tensors = load_tensors(path)
                for name in left & set(tensors):
                    tensors[name] = trained[name].to(tensors[name].dtype).contiguous()
                left -= set(tensors)
                save_file(tensors, part / path.name, metadata=_metadata(path))
            elif path.is_file() and path.suffix in _SUFFIXES and path.name != "calibration.json":
                shutil.copyfile(path, part / path.name)
        if left:
            raise InvalidWeightsError(f"{source} holds no tensor {min(left)}; it isn't what was trained")
        for path in sorted(part.iterdir()):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        part.rename(directory)
    except SafetensorError as error:
        raise OSError(f"{directory} can't be written ({error})") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _metadata(path: Path) -> dict[str, str] | None:
    with safe_open(path, framework="pt") as file:
        found: dict[str, str] | None = file.metadata()
    return found
