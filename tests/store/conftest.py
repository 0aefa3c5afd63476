"""A bank in a temporary directory, and child processes that can be killed at an exact point."""

import contextlib
import os
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mnemos.store.database import Database
from mnemos.store.records import MemoryDraft, TraceDraft, UseRecord
from mnemos.store.store import Store


@pytest.fixture(autouse=True)
def key_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Default key files go here, never into the home directory of who runs the tests."""
    home = tmp_path / "key-home"
    monkeypatch.setenv("MNEMOS_KEY_DIR", str(home))
    monkeypatch.delenv("MNEMOS_PASSPHRASE", raising=False)
    return home


@pytest.fixture
def fast_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is one: being killed loses no write that the system has taken."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=shared, prefix="mnemos-test-") as name:
        yield Path(name)


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    return tmp_path / "bank"


@pytest.fixture
def store(bank: Path) -> Iterator[Store]:
    with Store.open(bank) as opened:
        yield opened


@pytest.fixture(params=[True, False], ids=["encrypted", "plain"])
def either_store(bank: Path, request: pytest.FixtureRequest) -> Iterator[Store]:
    with Store.open(bank, encrypted=request.param) as opened:
        yield opened


def _in_child(work: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


@pytest.fixture
def in_child() -> Callable[[Callable[[], object]], int]:
    """Runs something in a process of its own; its exit code, negative for a signal."""
    return _in_child


def _kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _count_down(points: int) -> None:
    """From here on this process dies right before its `points`-th act on the disk or on a database."""
    left = [points]

    def tick() -> None:
        left[0] -= 1
        if left[0] <= 0:
            _kill_self()

    def before(module: Any, name: str) -> None:
        real = getattr(module, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            tick()
            return real(*args, **kwargs)

        setattr(module, name, wrapped)

    for name in ("fsync", "pwrite", "ftruncate"):
        before(os, name)
    before(Path, "unlink")
    before(Path, "replace")
    before(Database, "truncate_wal")
    real_write = Database.write

    @contextlib.contextmanager
    def write(self: Database) -> Iterator[Any]:
        with real_write(self) as connection:
            yield connection
            tick()
        tick()

    Database.write = write  # type: ignore[method-assign]


@pytest.fixture
def killed_at_each_point() -> Callable[[Callable[[], Callable[[], object]], Callable[[int], None]], int]:
    """`prepare` runs in a child and returns the act, which is killed at its 1st, 2nd, ... point.

    `check` is called after each kill with the number of the point. Returns how many points there were.
    """

    def run(prepare: Callable[[], Callable[[], object]], check: Callable[[int], None]) -> int:
        for point in range(1, 500):

            def child(point: int = point) -> None:
                act = prepare()
                _count_down(point)
                act()

            code = _in_child(child)
            check(point)
            if code == 0:
                return point - 1
            assert code == -signal.SIGKILL, f"the child failed by itself at point {point}"
        raise AssertionError("the act has too many points")

    return run


@dataclass(frozen=True)
class Family:
    """A small bank's ids: a fact, a stranger, and a reply made with the fact."""

    fact: str
    other: str
    reply: str


def _fill(store: Store, namespace: str = "alice") -> Family:
    fact, other = (
        record.id
        for record in store.add(
            namespace,
            [MemoryDraft("My sister Clara works as a nurse."), MemoryDraft("The boat is painted green.")],
        )
    )
    session = store.create_session(namespace, "evening talk")
    draft = MemoryDraft("What does she do?", kind="exchange", status="open", session_id=session.id)
    asked = store.add(namespace, [draft])[0]
    store.complete(namespace, asked.id, "Clara is a nurse.", uses=[UseRecord(fact, 0, 1.0)])
    store.put_traces(
        namespace,
        [
            TraceDraft(memory_id, "model-a", 7, b"kv" * 3000, b"route" * 50)
            for memory_id in (fact, other, asked.id)
        ],
    )
    return Family(fact, other, asked.id)


@pytest.fixture
def fill() -> Callable[..., Family]:
    return _fill
