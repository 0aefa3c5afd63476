"""The power goes: what was written and not synced is there, or not, or in part, in any order.

A process runs a random workload with `recorder.c` preloaded, which notes each write, fsync, truncation,
creation, removal and rename of every file of the bank, SQLite's own among them. From that record come images
of the disk as a cut at a random moment may leave it: for each file what its last fsync made durable, and of
what came after, for each 512 bytes by itself, all, none, or the first few writes; file sizes, and names until
their directory was synced, likewise. Each image must open as a bank in which every acknowledged memory is
there and every acknowledged erase holds.

The limits: sectors change as a whole, as SQLite relies on, too; a drive that lies about its flushes is not
modelled; what a file system does beyond POSIX is not counted on.
"""

import json
import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest

from mnemos.errors import NotFoundError
from mnemos.store.store import Store

HERE = Path(__file__).parent
MADE, WRITTEN, SYNCED, CUT, REMOVED, RENAMED, DIRECTORY = range(1, 8)
_RECORD = struct.Struct("=BIqQ")
SECTOR = 512


class Act(NamedTuple):
    kind: int
    path: str
    offset: int
    data: bytes


def parse(log: bytes) -> Iterator[Act]:
    at = 0
    while at < len(log):
        kind, path_length, offset, length = _RECORD.unpack_from(log, at)
        at += _RECORD.size
        path = log[at : at + path_length].decode()
        at += path_length
        yield Act(kind, path, offset, log[at : at + length])
        at += length


@dataclass
class File:
    is_directory: bool = False
    content: bytearray = field(default_factory=bytearray)  # as programs see it
    durable: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(
        default_factory=list
    )  # (offset, bytes), or None: cut there

    def write(self, offset: int, data: bytes) -> None:
        if len(self.content) < offset:
            self.content.extend(bytes(offset - len(self.content)))
        self.content[offset : offset + len(data)] = data
        self.pending.append((offset, data))

    def cut(self, size: int) -> None:
        if size < len(self.content):
            del self.content[size:]
        else:
            self.content.extend(bytes(size - len(self.content)))
        self.pending.append((size, None))

    def sync(self) -> None:
        self.durable = bytes(self.content)
        self.pending.clear()

    def after_cut(self, chance: random.Random, kept: float) -> bytes:
        """What may be on the disk; of what is pending, about that share is kept."""
        sizes = [len(self.durable)]
        changes: dict[int, list[tuple[int, bytes]]] = {}  # by sector: offset, bytes
        for offset, data in self.pending:
            if data is None:
                data = bytes(max(0, max(sizes) - offset))
                sizes.append(offset)
            else:
                sizes.append(max(sizes[-1], offset + len(data)))
            at = 0
            while at < len(data):
                sector, within = divmod(offset + at, SECTOR)
                size = min(SECTOR - within, len(data) - at)
                changes.setdefault(sector, []).append((offset + at, data[at : at + size]))
                at += size
        image = bytearray(self.durable.ljust(max(sizes), b"\0"))
        for each in changes.values():
            for offset, data in each[: _some(chance, kept, len(each))]:
                image[offset : offset + len(data)] = data
        return bytes(image[: sizes[_some(chance, kept, len(sizes) - 1)]])


def _some(chance: random.Random, kept: float, count: int) -> int:
    """How many of the first `count` changes are kept."""
    if kept in (0.0, 1.0):
        return int(kept) * count
    return chance.randint(0, count) if chance.random() < 0.5 else count * (chance.random() < kept)


class Disk:
    """The files under a root, what of them is durable, and what is not yet."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.now: dict[str, File] = {}
        self.durable: dict[str, File] = {}
        self.names: list[tuple[str, str, File | None]] = []  # pending: (path, former path, the file or None)

    def apply(self, act: Act) -> None:
        if act.kind in (MADE, DIRECTORY):
            self.now[act.path] = File(act.kind == DIRECTORY)
            self.names.append((act.path, "", self.now[act.path]))
        elif act.kind == REMOVED:
            self.now.pop(act.path, None)
            self.names.append((act.path, "", None))
        elif act.kind == RENAMED:
            new = act.data.decode()
            self.now[new] = self.now.pop(act.path)
            self.names.append((new, act.path, self.now[new]))
        elif act.path in self.now or act.kind == SYNCED:
            self._change(act)

    def _change(self, act: Act) -> None:
        found = self.now.get(act.path)
        if act.kind == WRITTEN and found is not None:
            found.write(act.offset, act.data)
        elif act.kind == CUT and found is not None:
            found.cut(act.offset)
        elif found is not None and not found.is_directory:
            found.sync()
        else:
            mine = [name for name in self.names if str(Path(name[0]).parent) == act.path]
            self.names = [name for name in self.names if name not in mine]
            _rename(self.durable, mine)

    def image(self, chance: random.Random, kept: float, to: Path) -> None:
        """Writes down a state that a cut at this moment may leave."""
        files = dict(self.durable)
        _rename(files, [name for name in self.names if _some(chance, kept, 1)])
        to.mkdir()
        for path, file in sorted(files.items()):
            place = to / Path(path).relative_to(self.root)
            if not place.parent.is_dir() or path.endswith("-shm"):
                continue
            if file.is_directory:
                place.mkdir(mode=0o700)
            else:
                place.write_bytes(file.after_cut(chance, kept))
                place.chmod(0o600)


def _rename(files: dict[str, File], changes: list[tuple[str, str, File | None]]) -> None:
    for path, former, file in changes:
        files.pop(former, None)
        if file is None:
            files.pop(path, None)
        else:
            files[path] = file


@dataclass
class Known:
    """What was acknowledged by the moment of the cut."""

    words: dict[str, dict[str, str]] = field(default_factory=dict)  # namespace -> id -> text
    replies: dict[str, str] = field(default_factory=dict)
    traced: set[str] = field(default_factory=set)
    unsure: set[str] = field(default_factory=set)  # an erase or a completion was going on
    erased: list[str] = field(default_factory=list)  # words
    erased_ids: set[str] = field(default_factory=set)
    receipts: set[str] = field(default_factory=set)

    def hear(self, line: bytes) -> None:
        event = json.loads(line)
        mine = self.words.setdefault(event["namespace"], {})
        if event["act"] == "added":
            mine.update(event["words"])
        elif event["act"] == "traced":
            self.traced.update(event["ids"])
        elif event["act"] in ("erasing", "completing"):
            self.unsure = set(event["ids"])
            self.traced -= self.unsure
        elif event["act"] == "completed":
            self.replies[event["ids"][0]] = event["reply"]
            self.unsure = set()
        else:
            for memory_id in event["ids"]:
                mine.pop(memory_id, None)
                self.replies.pop(memory_id, None)
            self.erased += event["words"]
            self.erased_ids.update(event["ids"])
            self.receipts.add(event["receipt"])
            self.unsure = set()


def check(bank: Path, known: Known, encrypted: bool) -> None:
    raw = b"".join(path.read_bytes() for path in bank.rglob("*") if path.is_file())
    if not encrypted:  # before anything is mended
        assert [words for words in known.erased if words.encode() in raw] == []
    with Store.open(bank, encrypted=encrypted) as store:
        report = store.verify(deep=True)
        assert report.ok, report.problems
        for namespace, words in known.words.items():
            held = {record.id: record for record in store.list(namespace)}
            lost = {i for i in words.keys() - known.unsure if i not in held or held[i].text != words[i]}
            assert not lost, (namespace, lost)
            assert not known.erased_ids & held.keys()
            for memory_id in words.keys() - known.unsure:
                if memory_id in known.replies:
                    assert held[memory_id].reply == known.replies[memory_id]
                if memory_id in known.traced:
                    assert store.get_kv(namespace, memory_id) == random.Random(memory_id).randbytes(700)
            texts = [record.text for record in held.values()]
            assert all(text not in texts for text in known.erased)
        assert known.receipts <= {receipt["id"] for receipt in store.receipts()}
        for memory_id in known.erased_ids:
            for namespace in store.namespaces():
                with pytest.raises(NotFoundError):
                    store.get(namespace, memory_id)


@pytest.fixture(scope="session")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("the recorder needs a C compiler on Linux")
    built = tmp_path_factory.mktemp("recorder") / "recorder.so"
    flags = ["-O1", "-shared", "-fPIC", "-o", str(built), str(HERE / "recorder.c"), "-ldl", "-lpthread"]
    subprocess.run([compiler, *flags], check=True)
    return built


def record(recorder: Path, root: Path, seed: int, acts: int, encrypted: bool) -> list[Act]:
    """What a workload did to the disk."""
    root.mkdir()
    log = root.with_suffix(".log")
    variables = {
        "LD_PRELOAD": str(recorder),
        "RECORD_LOG": str(log),
        "RECORD_ROOT": str(root),
        "MNEMOS_KEY_DIR": str(root / "key-home"),
    }
    script = [str(HERE / "power_cut_workload.py"), str(root), str(seed), str(acts), str(int(encrypted))]
    subprocess.run([sys.executable, *script], env=os.environ | variables, check=True)
    return list(parse(log.read_bytes()))


def cut_at_random(acts: list[Act], root: Path, to: Path, seed: int, cuts: int, encrypted: bool) -> int:
    """Checks images of random moments; how many acknowledged erases the last of them had to hold."""
    chance = random.Random(seed)
    moments = sorted(chance.sample(range(len(acts)), min(cuts, len(acts))))
    disk, known = Disk(root), Known()
    for number, act in enumerate(acts):
        if moments and number == moments[0]:
            moments.pop(0)
            place = to / f"{seed}-{number}"
            disk.image(chance, chance.choice([0.0, 0.5, 0.5, 0.9, 1.0]), place)
            os.environ["MNEMOS_KEY_DIR"] = str(place / "key-home")
            (place / "bank").mkdir(exist_ok=True)
            try:
                check(place / "bank", known, encrypted)
            except BaseException as error:
                error.add_note(f"workload {seed}, cut at act {number} of {len(acts)}: {place}")
                raise
            shutil.rmtree(place)
        if act.path.endswith("/acks"):
            if act.kind == WRITTEN:
                known.hear(act.data)
        else:
            disk.apply(act)
    return len(known.erased)


@pytest.mark.parametrize("encrypted", [True, False], ids=["encrypted", "plain"])
def test_after_a_power_cut_what_was_acknowledged_holds(
    recorder: Path, fast_disk: Path, encrypted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNEMOS_KEY_DIR", "")  # set anew for each image
    root = fast_disk / "root"
    acts = record(recorder, root, 11 + encrypted, 40, encrypted)
    assert sum(act.kind == SYNCED for act in acts) > 100
    assert cut_at_random(acts, root, fast_disk, 3, 25, encrypted) > 3


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_after_many_power_cuts(
    recorder: Path, fast_disk: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNEMOS_KEY_DIR", "")
    root = fast_disk / "root"
    acts = record(recorder, root, seed, 60, bool(seed % 2))
    cut_at_random(acts, root, fast_disk, seed, 120, bool(seed % 2))
