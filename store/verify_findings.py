"""What a verify has found so far, and how far it came: kept in `verify.state`, so that it can go on."""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from mnemos.store import catalog
from mnemos.store.core import Core
from mnemos.store.records import Problem, VerifyReport

OnProgress = Callable[[int, int], None]  # frames and files done, and in all
STATE = "verify.state"
_VERSION = 1
_SAVE_EVERY_S = 1.0
_TELL_EVERY = 64  # frames


@dataclass
class Findings:
    """Problems and counts. Ids, file names and numbers only."""

    core: Core
    deep: bool
    progress: OnProgress | None = None
    problems: dict[Problem, None] = field(default_factory=dict)
    quarantined: dict[Problem, None] = field(default_factory=dict)
    checked: dict[str, int] = field(default_factory=dict)
    epoch: int = 0
    done: list[str] = field(default_factory=list)  # units that are finished
    at: tuple[str, int, int] | None = None  # unit, segment and offset of the last frame looked at
    _unit: str = ""
    _before: dict[str, int] = field(default_factory=dict)  # counts when the unit began
    _went_past: tuple[str, int, int] | None = None  # where the walk that this one goes on with had come to
    _told: list[int] = field(default_factory=lambda: [0, 0])
    _saved_s: float = field(default_factory=time.monotonic)

    @classmethod
    def start(cls, core: Core, *, deep: bool, progress: OnProgress | None, resume: bool) -> "Findings":
        with core.catalog.read() as connection:
            epoch = catalog.erase_epoch(connection)
        found = cls(core, deep, progress, epoch=epoch)
        if resume:
            found._load()
        return found

    def add(self, kind: str, subject: str, detail: str) -> None:
        self.problems[Problem(kind, subject, detail)] = None

    def quarantine(self, memory_id: str, detail: str) -> None:
        self.quarantined[Problem("quarantined", memory_id, detail)] = None

    def count(self, what: str, number: int = 1) -> None:
        self.checked[what] = self.checked.get(what, 0) + number
        if what == "frames":
            self._advance(number)

    def expect(self, units: Sequence[str]) -> None:
        """Says how much there is to do: frames and units."""
        with self.core.catalog.read() as connection:
            frames = catalog.count_live_frames(connection)
        self._told = [min(self.checked.get("frames", 0), frames) + len(self.done), frames + len(units)]

    @contextmanager
    def unit(self, name: str) -> Iterator[bool]:
        """One namespace or segment; False where an earlier walk did it."""
        if name in self.done:
            yield False
            return
        self._unit, self._before = name, dict(self.checked)
        yield True
        self.done.append(name)
        self._advance(1, always=True)
        self._save_now_and_then()

    def is_past(self, segment: int, start: int) -> bool:
        """Whether the walk that this one goes on with looked at that frame. Notes where we are."""
        past = self._went_past
        if past is not None and past[0] == self._unit and (segment, start) <= past[1:]:
            return True
        self._save_now_and_then()  # before this frame, so that it stands for the one before
        self.at = (self._unit, segment, start)
        return False

    def report(self) -> VerifyReport:
        for name in (STATE, f"{STATE}.part"):
            if not self.core.read_only:
                (self.core.path / name).unlink(missing_ok=True)
        if self.progress is not None:
            self.progress(self._told[1], self._told[1])
        return VerifyReport(
            ok=not self.problems,
            checked=dict(sorted(self.checked.items())),
            problems=tuple(self.problems),
            quarantined=tuple(self.quarantined),
        )

    def _advance(self, number: int, *, always: bool = False) -> None:
        done, total = self._told
        self._told[0] = min(done + number, total)
        if self.progress is not None and (always or self._told[0] // _TELL_EVERY != done // _TELL_EVERY):
            self.progress(self._told[0], total)

    def _save_now_and_then(self) -> None:
        if time.monotonic() - self._saved_s < _SAVE_EVERY_S or self.core.read_only:
            return
        is_whole = self._unit in self.done
        state = {
            "v": _VERSION,
            "bank": self.core.bank_id,
            "deep": self.deep,
            "epoch": self.epoch,
            "done": self.done,
            "at": None if is_whole else self.at,
            "checked": self.checked if is_whole else self._before,
            "problems": [asdict(problem) for problem in self.problems],
            "quarantined": [asdict(problem) for problem in self.quarantined],
        }
        part = self.core.path / f"{STATE}.part"
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            json.dump(state, file)
        part.replace(self.core.path / STATE)
        self._saved_s = time.monotonic()

    def _load(self) -> None:
        """Takes over what an earlier walk left, where it was of this depth and nothing was erased since."""
        try:
            state: dict[str, Any] = json.loads((self.core.path / STATE).read_text(encoding="ascii"))
            known = (state["v"], state["bank"], state["deep"], state["epoch"])
            if known != (_VERSION, self.core.bank_id, self.deep, self.epoch):
                return
            problems = {Problem(**problem): None for problem in state["problems"]}
            quarantined = {Problem(**problem): None for problem in state["quarantined"]}
            done = [str(name) for name in state["done"]]
            checked = {str(name): int(count) for name, count in state["checked"].items()}
            at = state["at"]
            past = None if at is None else (str(at[0]), int(at[1]), int(at[2]))
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return  # none, or one that was cut off: begin at the beginning
        self.problems, self.quarantined, self.done, self.checked = problems, quarantined, done, checked
        self._went_past = past
