"""Calibration files: reading one that may be damaged, newer or of another model, writing one whole, and
where a model's own is looked for.
"""

import json
import os
from pathlib import Path

from pydantic import ValidationError

from mnemos.attention.cache_dir import write_atomically
from mnemos.attention.calibration import FORMAT_VERSION, Calibration, for_model
from mnemos.attention.config import ModelConfig
from mnemos.errors import ModelError, NotFoundError, UsageError

CALIBRATION_ENV = "MNEMOS_CALIBRATION"
UNCALIBRATED = "none"  # in place of a file's path: safe defaults, whatever lies beside the model
_MAX_BYTES = 16 << 20


def calibration_beside(weights: Path) -> Path:
    """Where the calibration of a model is looked for: in its directory, or beside its .gguf file."""
    if weights.is_dir():
        return weights / "calibration.json"
    return weights.with_name(f"{weights.stem}.calibration.json")


def read_calibration(path: Path) -> Calibration:
    """The calibration in a file.

    Raises NotFoundError, and ModelError when it is cut off, damaged, or made by a newer Mnemos.
    """
    again = f"make it again: `mnemos model calibrate MODEL --data FILE --out {path}`"
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise NotFoundError(f"there is no calibration file {path}; check the path") from None
    except OSError as error:
        raise ModelError(f"the calibration {path} can't be read ({error.strerror})") from error
    if len(data) > _MAX_BYTES:
        raise ModelError(f"{path} is too large to be a calibration ({_MAX_BYTES >> 20} MiB at most)")
    try:
        fields = json.loads(data)
    except ValueError:
        raise ModelError(f"the calibration {path} is no whole JSON, cut off or damaged; {again}") from None
    version = fields.get("version") if isinstance(fields, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ModelError(f"{path} is no calibration: it has no version; {again}")
    if version > FORMAT_VERSION:
        raise ModelError(
            f"the calibration {path} was made by a newer Mnemos (version {version}; this one reads up to "
            f"{FORMAT_VERSION}); update Mnemos, or {again}"
        )
    try:
        return Calibration.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ModelError(f"the calibration {path} is damaged ({where}: {first['msg']}); {again}") from None


def read_own(path: Path, config: ModelConfig, fingerprint: str) -> Calibration:
    """As `read_calibration`, of that very model. Raises ModelError naming the file when it is of another."""
    calibration = read_calibration(path)
    try:
        calibration.check_fits(config, fingerprint)
    except ModelError as error:
        raise ModelError(
            f"{path}: {error} (`mnemos model calibrate`), or move the file away; "
            f"{CALIBRATION_ENV}={UNCALIBRATED} does without"
        ) from None
    return calibration


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Writes the whole file or none of it: the same calibration gives the same bytes. UsageError."""
    # One field a line: long lists of numbers stay on theirs, and a person can read the rest.
    lines = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}"
        for name, value in calibration.model_dump(mode="json").items()
    )
    try:
        write_atomically(path, f"{{\n{lines}\n}}\n".encode())
    except OSError as error:
        raise UsageError(
            f"the calibration can't be written to {path} ({error.strerror}); name another place with --out"
        ) from error


def calibration_of(
    name: str,
    weights: Path | None,
    config: ModelConfig,
    fingerprint: str,
    asked: str | os.PathLike[str] | None,
) -> Calibration:
    """The calibration that a model is loaded with.

    In this order: the file `asked` for, or `none`; the one that `MNEMOS_CALIBRATION` names; the one beside
    the weights; the one that ships; safe defaults.
    """
    named = os.fspath(asked) if asked else os.environ.get(CALIBRATION_ENV)
    if named == UNCALIBRATED:
        return Calibration.uncalibrated(config)
    if named:
        return read_own(Path(named).expanduser(), config, fingerprint)
    if weights is not None and (own := calibration_beside(weights)).exists():
        return read_own(own, config, fingerprint)
    return for_model(name, config, fingerprint)
