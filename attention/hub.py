"""Models by their name on the Hugging Face hub: `hub:owner/name`, `hub:owner/name@revision`, and
`hub:owner/name/file.gguf` for one file of a repository.

`huggingface_hub` does the transfer and keeps the files in its own cache (`HF_HOME`), so that what another
program fetched is not fetched again, and its settings (`HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`) hold
here. No torch.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from mnemos.attention.registry import HUB_PREFIX
from mnemos.errors import ModelDownloadError, UnknownModelError, UsageError

# What a model directory is made of. Weights in other formats (pickles among them) are never fetched.
_WANTED = ("*.safetensors", "*.json", "*.jinja")
_FORM = re.compile(r"hub:(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[\w./-]+\.gguf))?(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True, slots=True)
class HubName:
    """The parts of a hub name."""

    repo: str  # owner/name
    file: str | None  # a GGUF file of the repository, or None for a model directory
    revision: str | None  # branch, tag or commit; the main branch when None

    @property
    def title(self) -> str:
        """The name that a model from here goes by."""
        return f"{self.repo}/{self.file}" if self.file else self.repo

    @classmethod
    def parse(cls, name: str) -> "HubName":
        """Raises UsageError when `name` is not of the form."""
        match = _FORM.fullmatch(name)
        if match is None or ".." in name:
            raise UsageError(
                f"'{name}' is no hub name; use {HUB_PREFIX}owner/name, with @revision or /file.gguf behind it"
            )
        return cls(match["repo"], match["file"], match["revision"])


def fetch_from_hub(name: str) -> Path:
    """The local directory (or GGUF file) of a hub name, fetched when it isn't in the hub's cache yet.

    Raises UsageError without the `hub` extra or on a malformed name, UnknownModelError when the hub has no
    such model, ModelDownloadError when it can't be reached and the cache doesn't hold it.
    """
    wanted = HubName.parse(name)
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise UsageError(f"{name} needs huggingface_hub: pip install 'mnemos[hub]'") from error
    try:
        if wanted.file:
            return Path(huggingface_hub.hf_hub_download(wanted.repo, wanted.file, revision=wanted.revision))
        return Path(
            huggingface_hub.snapshot_download(
                wanted.repo, revision=wanted.revision, allow_patterns=list(_WANTED)
            )
        )
    except errors.GatedRepoError as error:
        raise ModelDownloadError(
            f"{name} asks for its terms to be accepted on the hub; do so there, then set HF_TOKEN"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise UnknownModelError(
            f"the hub has no {name}; check the spelling, or set HF_TOKEN if it is private"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise ModelDownloadError(
            f"{name} is not in the hub's cache and the hub can't be reached; go online, or give the path of "
            "a model directory"
        ) from error
    except errors.EntryNotFoundError as error:
        raise UnknownModelError(f"the hub has no file {wanted.file} in {wanted.repo}") from error
    # The library lets errors of whatever HTTP client it is built on through; all of them are the network's.
    except (OSError, errors.HfHubHTTPError, ValueError) as error:
        raise ModelDownloadError(
            f"{name} can't be fetched ({type(error).__name__}); check the network, then try again"
        ) from error


def cached_path(name: str) -> Path | None:
    """Where a hub name's files lie in the hub's cache, or None; nothing is fetched.

    Raises UsageError on a malformed name.
    """
    wanted = HubName.parse(name)
    try:
        import huggingface_hub
    except ImportError:
        return None
    file = wanted.file or "config.json"
    found = huggingface_hub.try_to_load_from_cache(wanted.repo, file, revision=wanted.revision)
    if not isinstance(found, str):
        return None
    return Path(found) if wanted.file else Path(found).parent
