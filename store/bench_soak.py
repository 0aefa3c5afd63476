"""`mnemos bench soak`: random operations on a bank whose process gets killed, and what was lost by it.

The process that works on the bank acknowledges each operation on a pipe. The one that kills it keeps the
truth, and compares the bank with it after each kill: what was acknowledged holds, and the operation that was
under way is there as a whole or not at all.
"""

import json
import os
import random
import re
import select
import shutil
import signal
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from mnemos.errors import MnemosError, NotFoundError, UsageError
from mnemos.store.erasing import STEPS
from mnemos.store.keys import KeyFile, KeyProvider
from mnemos.store.soak_operations import ERASING, NAMESPACES, PART_CHARS, Chooser, serve
from mnemos.store.soak_truth import (
    Held,
    Operation,
    Result,
    Space,
    adopt,
    differences,
    observe,
)
from mnemos.store.store import Store

OnProgress = Callable[[int, int], None]  # operations done, of how many
_PATIENCE_S = 120.0  # for one operation; the bank hangs when it takes longer
_SAMPLE = 8  # words looked up after each kill
_DEEP_EVERY = 20  # kills between two deep verifies
_RUN = re.compile(rb"[a-z]{%d,}" % PART_CHARS)


class _Worker:
    """A process that does operations on the bank."""

    def __init__(self, bank: Path, keys: KeyProvider | None) -> None:
        asked, self._ask = os.pipe()
        self._told, told = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._ask)
            os.close(self._told)
            serve(bank, keys, asked, told)
        os.close(asked)
        os.close(told)
        self._seen = b""

    def ask(self, operation: Operation) -> None:
        data = json.dumps(operation).encode("ascii") + b"\n"
        with suppress(BrokenPipeError):  # it is dead, which `answer` says
            while data:
                data = data[os.write(self._ask, data) :]

    def answer(self, patience_s: float = _PATIENCE_S) -> Result | None:
        """What it acknowledges next; None when it died before."""
        while b"\n" not in self._seen:
            if not select.select([self._told], [], [], patience_s)[0]:
                return {"error": f"no answer within {patience_s:.0f} s"}
            part = os.read(self._told, 1 << 16)
            if not part:
                return None
            self._seen += part
        line, self._seen = self._seen.split(b"\n", 1)
        found: Result = json.loads(line)
        return found

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def end(self) -> int:
        """Waits for its end, which comes when nothing more is asked; exit code, negative for a signal."""
        os.close(self._ask)
        _, status = os.waitpid(self.pid, 0)
        os.close(self._told)
        return os.waitstatus_to_exitcode(status)


class _Soak:
    """One run: the truth, the counts, and the problems found."""

    def __init__(self, bank: Path, keys: KeyProvider | None, seed: int) -> None:
        self.bank = bank
        self.keys = keys
        self.chance = random.Random(seed)
        self.chooser = Chooser(self.chance)
        self.spaces = {name: Space() for name in NAMESPACES}
        self.erased: dict[str, str] = {}  # id to namespace
        self.gone_words: set[str] = set()
        self.receipts: set[str] = set()
        self.problems: list[str] = []
        self.took_s: dict[str, list[float]] = {}
        self.done = 0
        self.counts = dict.fromkeys(
            ("kills", "kept", "undone", "opens_killed", "died_at_a_step", "died_idle", "memories_written"), 0
        )

    def report(self, problem: str) -> None:
        self.problems.append(f"after operation {self.done}: {problem}")

    # -- between two kills

    def work(self, until: int) -> _Worker | None:
        """A worker that has done everything up to that operation; None when something is wrong."""
        worker = _Worker(self.bank, self.keys)
        if not self._is_fine(worker.answer(), "opening the bank"):
            worker.kill()
            worker.end()
            return None
        while self.done < until:
            operation = self.chooser.choose(self.spaces)
            started = time.perf_counter()
            worker.ask(operation)
            result = worker.answer()
            self.took_s.setdefault(operation["do"], []).append(time.perf_counter() - started)
            self.done += 1
            if not self._is_fine(result, operation["do"]):
                worker.kill()
                worker.end()
                return None
            self.acknowledge(operation, result or {})
        return worker

    def _is_fine(self, result: Result | None, what: str) -> bool:
        if result is None:
            self.report(f"the process died by itself ({what})")
        elif "error" in result:
            self.report(result["error"])
        return result is not None and "error" not in result

    def acknowledge(self, operation: Operation, result: Result) -> None:
        if operation["do"] == "add":
            self.counts["memories_written"] += len(operation["drafts"])
        names = NAMESPACES if operation["do"] == "sweep" else [operation["namespace"]]
        wanted = {one for name in names for one in self._doomed(operation, name)}
        if operation["do"] in ERASING and wanted != set(result["erased"]):
            self.report(f"{operation['do']} took {len(result['erased'])} memories, not {len(wanted)}")
        self.receipts.update(result.get("receipts", ()))
        for name in names:
            self._lose(name, self.spaces[name].apply(operation, result))

    def _doomed(self, operation: Operation, name: str) -> list[str]:
        if operation["do"] == "sweep":
            return self.spaces[name].expired()
        if operation["do"] == "wipe":
            return [held.id for held in self.spaces[name].held.values()]
        return list(operation.get("ids", ())) if operation["do"] == "erase" else []

    def _lose(self, name: str, gone: list[Held]) -> None:
        """Notes what may be nowhere any more."""
        for held in gone:
            self.erased[held.id] = name
            kept = self.spaces[name].held.get(held.text)
            self.gone_words.update(() if kept is not None else held.text.split())
            self.gone_words.update((held.reply or "").split())

    # -- a kill

    def kill(self, worker: _Worker) -> None:
        """Kills the worker in the middle of one more operation, at a random moment or step."""
        self.counts["kills"] += 1
        operation = self.chooser.choose(self.spaces)
        result: Result | None = None
        way = self.chance.random()
        if way < 0.05:
            self.counts["died_idle"] += 1
            worker.kill()
            worker.end()
            self.check(None, None)
            return
        at_step = operation["do"] in ("erase", "wipe") and way < 0.6
        if at_step:
            operation["die_at"] = self.chance.choice(STEPS)
            self.counts["died_at_a_step"] += 1
        worker.ask(operation)
        self.done += 1
        if not at_step:
            usual = statistics.median(self.took_s.get(operation["do"]) or [0.01])
            time.sleep(self.chance.uniform(0, 1.5) * usual)
            worker.kill()
        result = worker.answer()
        worker.kill()
        worker.end()
        if result is not None and not self._is_fine(result, operation["do"]):
            return
        if self.chance.random() < 0.2:
            self._kill_an_opening()
        self.check(operation, result)

    def _kill_an_opening(self) -> None:
        """A process that puts the bank in order after a kill can be killed as well."""
        self.counts["opens_killed"] += 1
        opener = _Worker(self.bank, self.keys)
        time.sleep(self.chance.uniform(0, 0.06))
        opener.kill()
        opener.end()

    def check(self, operation: Operation | None, result: Result | None) -> None:
        """Compares the bank with the truth; `operation` was under way and `result` is what it told, if so."""
        if operation is not None and result is not None:
            self.acknowledge(operation, result)
            operation = None
        try:
            with Store.open(self.bank, keys=self.keys) as store:
                for name in NAMESPACES:
                    self._check_space(store, name, operation)
                deep = self.counts["kills"] % _DEEP_EVERY == 0
                self._verify(store, deep=deep)
        except MnemosError as error:
            self.report(f"{type(error).__name__}: {error}")

    def _check_space(self, store: Store, name: str, operation: Operation | None) -> None:
        seen = observe(store, name)
        truth = self.spaces[name]
        before = differences(truth, seen)
        if operation is not None and (operation["namespace"] == name or operation["do"] == "sweep"):
            after = truth.copy()
            gone = after.apply(operation, None)
            wrong = differences(after, seen)
            if wrong and before:
                self.report(f"{operation['do']} is neither there ({wrong[0]}) nor undone ({before[0]})")
                return
            if before:
                self.counts["kept"] += 1
                adopt(after, seen)
                self.spaces[name] = after
                self._lose(name, gone)
            elif wrong:
                self.counts["undone"] += 1
        else:
            for problem in before:
                self.report(f"{name}: {problem}")
        self._check_search(store, name)

    def _check_search(self, store: Store, name: str) -> None:
        held = [one for one in self.spaces[name].held.values() if not one.hidden and not one.is_expired]
        if store.recent_ids(name, len(held) + 1) != [one.id for one in reversed(held)]:
            self.report(f"{name}: the latest memories are not those that were written last")
        for one in self.chance.sample(held, min(len(held), _SAMPLE)):
            found = [memory_id for memory_id, _ in store.lexical(name, one.text.split()[-1], 2)]
            if found != [one.id]:
                self.report(f"{name}: search does not find memory {one.id}")
        for word in self.chance.sample(sorted(self.gone_words), min(len(self.gone_words), _SAMPLE)):
            if store.lexical(name, word, 2):
                self.report(f"{name}: search finds a word of an erased memory")
        for memory_id in self.chance.sample(sorted(self.erased), min(len(self.erased), _SAMPLE)):
            with suppress(NotFoundError):
                store.get(self.erased[memory_id], memory_id)
                self.report(f"memory {memory_id} is there though it was erased")

    def _verify(self, store: Store, *, deep: bool) -> dict[str, int]:
        verified = store.verify(deep=deep)
        for problem in verified.problems:
            self.report(f"verify: {problem.kind} {problem.subject}: {problem.detail}")
        return dict(verified.checked)

    # -- the end

    def finish(self) -> dict[str, int]:
        """Looks for every id and word that was ever erased; the counts of a deep verify."""
        with Store.open(self.bank, keys=self.keys) as store:
            for name in NAMESPACES:
                for problem in differences(self.spaces[name], observe(store, name)):
                    self.report(f"{name}: {problem}")
            for memory_id, name in self.erased.items():
                with suppress(NotFoundError):
                    store.get(name, memory_id)
                    self.report(f"memory {memory_id} is there though it was erased")
            known = {receipt["id"] for receipt in store.receipts()}
            for missing in self.receipts - known:
                self.report(f"receipt {missing} is not there any more")
            checked = self._verify(store, deep=True)
        for name in words_left(self.bank, self.gone_words):
            self.report(f"{name} holds words of erased memories")
        return checked


def run(
    operations: int = 10_000,
    kills: int = 200,
    seed: int = 0,
    path: Path | None = None,
    *,
    keep: bool = False,
    encrypted: bool = True,
    progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Works on a new bank at `path` (or in a temporary directory) and kills its process `kills` times.

    `ok` says whether nothing was wrong, `problems` what was. The bank stays with `keep`, and when something
    is wrong; its key is then where the key of any other bank is. Without encryption the bank's bytes are also
    searched for words of what was erased. UsageError when a bank is at `path` already.
    """
    if path is not None and path.exists() and any(path.iterdir()):
        raise UsageError(f"{path} is not empty; give a new directory for the bank")
    folder = Path(mkdtemp(prefix="mnemos-soak-"))
    bank = folder / "bank" if path is None else path
    keys = None if keep else KeyFile(folder / "bank.key")
    soak = _Soak(bank, keys, seed)
    started = time.perf_counter()
    Store.open(bank, keys=keys, encrypted=encrypted).close()
    moments = sorted(soak.chance.sample(range(1, operations + 1), min(kills, operations)))
    for moment in moments:
        worker = soak.work(moment - 1)
        if worker is None:
            break
        soak.kill(worker)
        if soak.problems:
            break
        if progress is not None:
            progress(soak.done, operations)
    if not soak.problems:
        worker = soak.work(operations)
        if worker is not None and worker.end() != 0:
            soak.report("the process failed when it closed the bank")
    checked = soak.finish()
    stays = keep or bool(soak.problems)
    if not stays:
        shutil.rmtree(bank)
    if not stays or (keep and path is not None):
        shutil.rmtree(folder)
    return {
        "ok": not soak.problems,
        "problems": soak.problems,
        "operations": soak.done,
        **soak.counts,
        "memories": sum(len(space.held) for space in soak.spaces.values()),
        "erased": len(soak.erased),
        "receipts": len(soak.receipts),
        "verified": checked,
        "encrypted": encrypted,
        "seed": seed,
        "bank": str(bank) if stays else None,
        "seconds": round(time.perf_counter() - started, 1),
    }


def words_left(bank: Path, words: set[str]) -> list[str]:
    """Names of the bank's files that hold one of these words, or the end of one."""
    tails = {word[-PART_CHARS:].encode() for word in words}
    found = []
    for path in sorted(bank.rglob("*")):
        if path.is_file():
            runs = _RUN.findall(path.read_bytes())
            if any(
                run[at : at + PART_CHARS] in tails for run in runs for at in range(len(run) - PART_CHARS + 1)
            ):
                found.append(str(path.relative_to(bank)))
    return found
