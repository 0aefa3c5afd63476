"""Banks of `eval recall` that are left on disk, so that the same conversations needn't be read again."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from mnemos.errors import UsageError
from mnemos.store.disk import make_folder

_LIST = "evaluated.json"


@dataclass(slots=True)
class Place:
    """A folder for one bank, and the ids of the memories that each conversation became in it, by its number
    in the file.
    """

    folder: Path
    about: Mapping[str, object]
    ids: dict[int, list[str]] = field(default_factory=dict)

    def keep(self, ids: Mapping[int, Sequence[str]]) -> None:
        """Note whose memories they are."""
        listed = {"about": self.about, "ids": {str(number): list(each) for number, each in ids.items()}}
        (self.folder / _LIST).write_text(json.dumps(listed), encoding="utf-8")

    def read(self) -> None:
        """Find out. Raises UsageError where something else lies there."""
        try:
            listed = json.loads((self.folder / _LIST).read_text(encoding="utf-8"))
            self.ids = {int(number): list(each) for number, each in listed["ids"].items()}
            is_same = listed["about"] == self.about
        except FileNotFoundError:
            if any(self.folder.iterdir()):
                raise UsageError(f"{self.folder} is not a bank of a whole run: name another --path") from None
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{self.folder / _LIST} can't be read ({error}): name another --path") from None
        if not is_same:
            raise UsageError(f"{self.folder} holds other conversations or units: name another --path")


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
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    about = {"file": digest, "conversations": len(group) if merge else 1, "unit": unit, "merged": merge}
    folder = kept / ("merged" if merge else f"{group[0]:05d}")
    make_folder(folder)
    place = Place(folder, about)
    place.read()
    yield place
