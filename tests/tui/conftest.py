"""The `mnemos` command over a bank in a temporary directory: in this process, or in one of its own."""

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from mnemos.tui.console import run
from mnemos.tui.main import app

SCRIPT = Path(sys.executable).with_name("mnemos")


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Command:
    """Runs `mnemos` on one bank, with standard input that is no terminal."""

    bank: Path
    environment: Mapping[str, str]

    def __call__(self, *args: str | bytes, stdin: str | bytes = b"", **environment: str) -> Ran:
        """In this process, which spares the start of another; all else is as `process` has it."""
        data = stdin.encode() if isinstance(stdin, str) else stdin
        out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
        streams = {"stdin": io.TextIOWrapper(io.BytesIO(data), "utf-8"), "stdout": out, "stderr": err}
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with (
                patch.dict(os.environ, {**self.environment, "MNEMOS_DEBUG": "1", **environment}, clear=True),
                patch.multiple(sys, **streams),
            ):
                code = run(app, [os.fsdecode(arg) for arg in args])
        finally:
            signal.signal(signal.SIGTERM, handler)
        out.flush()
        err.flush()
        return Ran(code, out.buffer.getvalue().decode(), err.buffer.getvalue().decode())  # type: ignore[attr-defined]

    def process(self, *args: str | bytes, stdin: str | bytes = b"", **environment: str) -> Ran:
        """In a process of its own, as people run it."""
        data = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            [SCRIPT, *args],
            input=data,
            capture_output=True,
            env={**self.environment, **environment},
            timeout=240,
        )
        out, err = done.stdout.decode(), done.stderr.decode()
        assert "Traceback" not in err, err
        return Ran(done.returncode, out, err)

    def remember(self, *texts: str, namespace: str = "default") -> list[str]:
        """Ids of the texts, remembered one by one."""
        return [self("remember", "--json", "--namespace", namespace, "--", text).json["id"] for text in texts]


class Terminal:
    """`mnemos` on a terminal of its own; what it shows is gathered in `seen`."""

    def __init__(self, mnemos: Command, *args: str) -> None:
        self.master, slave = pty.openpty()
        environment = {**mnemos.environment, "TERM": "xterm", "COLUMNS": "100"}
        self.process = subprocess.Popen(
            [SCRIPT, *args], stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)
        self.seen = ""
        self._waited = 0  # characters of `seen` that were waited for already

    def wait_for(self, text: str) -> None:
        """Until the text shows, after what an earlier call waited for."""
        self.wait_until(lambda: text in self.seen[self._waited :])
        self._waited = self.seen.index(text, self._waited) + len(text)

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, f"timed out; seen: {self.seen!r}"
            if not self._read():
                assert condition(), f"it ended; seen: {self.seen!r}"

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def interrupt(self) -> None:
        """What the terminal sends its foreground processes at Ctrl+C."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> int:
        """The exit code, once it is there."""
        self.wait_until(lambda: not self._read())
        os.close(self.master)
        return self.process.wait(60)

    def kill(self) -> None:
        """Ends it, where a test left it running."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
            os.close(self.master)

    def _read(self) -> bool:
        if not select.select([self.master], [], [], 1.0)[0]:
            return self.process.poll() is None
        try:
            data = os.read(self.master, 4096)
        except OSError:  # the other side is closed
            return False
        self.seen += data.decode(errors="replace")
        return bool(data)


OpenTerminal = Callable[..., Terminal]


@pytest.fixture
def open_terminal() -> Iterator[OpenTerminal]:
    """Makes terminals as `Terminal` does, and leaves none running."""
    made: list[Terminal] = []

    def make(mnemos: Command, *args: str) -> Terminal:
        made.append(Terminal(mnemos, *args))
        return made[-1]

    yield make
    for terminal in made:
        terminal.kill()


@pytest.fixture
def mnemos(tmp_path: Path) -> Command:
    return command_on(tmp_path)


def command_on(folder: Path) -> Command:
    unset = {"MNEMOS_BANK", "MNEMOS_NAMESPACE", "MNEMOS_MODEL", "MNEMOS_PASSPHRASE", "COLUMNS", "NO_COLOR"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    bank = folder / "bank"
    own = {
        "MNEMOS_CONFIG": str(folder / "config.toml"),
        "MNEMOS_BANK": str(bank),
        "MNEMOS_KEY_DIR": str(folder / "keys"),
        "HOME": str(folder / "home"),
    }
    # The weights are looked for where they are kept, not below the temporary home.
    cache = environment.get("MNEMOS_CACHE_DIR") or str(Path.home() / ".cache" / "mnemos")
    return Command(bank, {**environment, **own, "MNEMOS_CACHE_DIR": cache})


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """A bank that the tests of a module share; they don't forget what others look for."""
    return command_on(tmp_path_factory.mktemp("shared"))
