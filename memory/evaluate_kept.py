"""Banks of `eval recall` and `eval needle` that are left on disk, so that the same texts needn't be read
again.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from mnemos.errors import BankLockedError, UsageError
from mnemos.store.disk import fsync_dir, make_folder, storage_errors

_LIST = "evaluated.json"
_BANK, _KEY = "bank", "bank.key"
_LOCK = "lock"


@dataclass(slots=True)
class Place:
    """A folder for one bank, and the ids of the memories that each conversation became in it, by its number
    in the file; a haystack is number 0.
    """

    folder: Path
    about: Mapping[str, object]
    ids: dict[int, list[str]] = field(default_factory=dict)

    @property
    def bank(self) -> Path:
        return self.folder / _BANK

    @property
    def key(self) -> Path:
        return self.folder / _KEY

    def keep(self, ids: Mapping[int, Sequence[str]]) -> None:
        """Note whose memories they are."""
        listed = {"about": self.about, "ids": {str(number): list(each) for number, each in ids.items()}}
        fresh = self.folder / f"{_LIST}.new"
        with storage_errors(self.folder):
            with fresh.open("w", encoding="utf-8") as lines:
                lines.write(json.dumps(listed))
                lines.flush()
                os.fsync(lines.fileno())
            fresh.replace(self.folder / _LIST)
            fsync_dir(self.folder)

    def read(self) -> None:
        """Find out; what a run left unfinished before it had written all down is removed.

        Raises UsageError where something else lies there.
        """
        try:
            listed = json.loads((self.folder / _LIST).read_text(encoding="utf-8"))
            self.ids = {int(number): list(each) for number, each in listed["ids"].items()}
            is_same = listed["about"] == self.about
        except FileNotFoundError:
            if {each.name for each in self.folder.iterdir()} - {f"{_LIST}.new"}:
                raise UsageError(f"{self.folder} is not a bank of a whole run: name another --path") from None
            self.keep({})  # what comes next is known to be ours
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{self.folder / _LIST} can't be read ({error}): name another --path") from None
        if not is_same:
            raise UsageError(f"{self.folder} holds other texts or units: name another --path")
        if not self.ids:
            with storage_errors(self.folder):
                shutil.rmtree(self.bank, ignore_errors=True)
                self.key.unlink(missing_ok=True)
        elif not self.bank.is_dir() or not self.key.is_file():
            raise UsageError(
                f"{self.folder} has lost its bank or its key: remove that folder, or name another --path"
            )


@contextmanager
def kept_for_one_run(kept: Path | None) -> Iterator[None]:
    """Makes the directory, and keeps other runs out of it. Raises UsageError where none can be made there,
    BankLockedError while another run is at it.
    """
    if kept is None:
        yield
        return
    from filelock import FileLock, Timeout  # loads asyncio

    try:
        make_folder(kept)
        lock = FileLock(kept / _LOCK, thread_local=False, mode=0o600)
        lock.acquire(timeout=0)
    except Timeout:
        raise BankLockedError(
            f"Another run is evaluating in {kept}: wait for it, or name another --path."
        ) from None
    except OSError as error:
        raise UsageError(
            f"--path: {kept} can't be used as a directory ({error.strerror}); name another"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def place_of(
    kept: Path | None, file: Path, group: Sequence[int], *, unit: str, merge: bool
) -> Iterator[Place]:
    """Where the bank of those conversations of a file is made or lies: in a folder of its own below `kept`,
    or in one that is gone afterwards.
    """
    if kept is None:
        with TemporaryDirectory(prefix="mnemos-eval-") as temporary:
            yield Place(Path(temporary), {})
        return
    about = {
        "file": digest_of(file),
        "conversations": len(group) if merge else 1,
        "unit": unit,
        "merged": merge,
    }
    yield place_at(kept / ("merged" if merge else f"{group[0]:05d}"), about)


def place_at(folder: Path, about: Mapping[str, object]) -> Place:
    """A folder for a bank of what `about` says, made or found. UsageError where something else lies there."""
    with storage_errors(folder):
        make_folder(folder)
    place = Place(folder, about)
    place.read()
    return place


def digest_of(file: Path) -> str:
    """SHA-256 (hex) of a file's content."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
