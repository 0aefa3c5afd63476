"""Where downloaded and converted weights live, and the digests of files that were hashed before. No torch."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs

CACHE_DIR_ENV = "MNEMOS_CACHE_DIR"
_READ_BYTES = 1 << 22


def cache_dir() -> Path:
    """`MNEMOS_CACHE_DIR`, or the platform's cache directory for Mnemos. Not created here."""
    named = os.environ.get(CACHE_DIR_ENV)
    return Path(named).expanduser() if named else platformdirs.user_cache_path("mnemos")


def models_dir() -> Path:
    """Where downloaded weights are kept, a directory per model."""
    return cache_dir() / "models"


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's content, remembered while its size, times and inode stay the same."""
    status = path.stat()
    state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    key = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    sidecar = cache_dir() / "digests" / f"{key}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        remembered = json.loads(sidecar.read_text(encoding="utf-8"))
        if remembered["state"] == state:
            return str(remembered["sha256"])
    digest = content_digest(path)
    # An unwritable cache costs time at the next start, nothing else.
    with contextlib.suppress(OSError):
        write_atomically(sidecar, json.dumps({"state": state, "sha256": digest}).encode())
    return digest


def content_digest(path: Path, on_progress: Callable[[int, int], None] | None = None) -> str:
    """SHA-256 (hex) over the whole file, read now."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        total = os.fstat(file.fileno()).st_size
        while block := file.read(_READ_BYTES):
            digest.update(block)
            done += len(block)
            if on_progress:
                on_progress(done, total)
    return digest.hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Writes `data` so that `path` holds all of it or what it held before. Raises OSError."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, made durable and moved onto it when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
