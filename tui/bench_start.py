"""How soon `mnemos chat` takes words in a fresh process, and what it costs when nobody types."""

import fcntl
import os
import pty
import select
import statistics
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

_SIZE = (30, 100)  # lines, columns
_PATIENCE_S = 120.0
_COMMAND = "import sys; from mnemos.tui.start import main; sys.argv[0] = 'mnemos'; main()"
_SHOWN = b"ay something"  # the cursor stands on the first letter, which is written apart until it blinks
_TYPED = "zqxj"  # letters that are nowhere else on the screen


_EMPTY = (  # the least that Textual makes of a prompt: no app of Textual's starts sooner
    "from textual.app import App\nfrom textual.widgets import TextArea\n"
    "class Empty(App):\n    def compose(self):\n        yield TextArea(placeholder='Say something')\n"
    "Empty().run()"
)


class _Terminal:
    """The command on a terminal of its own."""

    def __init__(self, bank: Path, model: str, code: str = _COMMAND) -> None:
        self.started = time.perf_counter()
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *_SIZE, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "chat", "--bank", str(bank), "--model", model],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": "xterm-256color", "MNEMOS_KEY_DIR": str(bank.parent / "keys")},
            start_new_session=True,
        )
        os.close(slave)
        self.seen = b""

    def read(self, wait_s: float) -> None:
        if select.select([self.master], [], [], wait_s)[0]:
            self.seen += os.read(self.master, 65536)

    def until(self, words: bytes) -> float:
        """Seconds from the start until they show. TimeoutError."""
        while words not in self.seen:
            if time.perf_counter() - self.started > _PATIENCE_S:
                raise TimeoutError("`mnemos chat` showed no prompt in two minutes")
            self.read(0.5)
        return time.perf_counter() - self.started

    def rest(self, seconds: float) -> None:
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            self.read(left)

    def close(self) -> None:
        self.process.terminate()
        try:
            while os.read(self.master, 65536):
                pass
        except OSError:
            pass
        os.close(self.master)
        self.process.wait(30)


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process took so far. OSError where the system does not say."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def starting(bank: Path, *, runs: int, idle_s: float, model: str) -> dict[str, Any]:
    """Median seconds until a typed word shows in the prompt, and the share of a CPU at rest, in percent."""
    took: list[float] = []
    idle: float | None = None
    for run in range(runs):
        terminal = _Terminal(bank, model)
        try:
            terminal.until(_SHOWN)
            os.write(terminal.master, _TYPED.encode())
            took.append(terminal.until(_TYPED.encode()))
            if run == runs - 1 and Path("/proc/self/stat").exists():
                idle = _idle(terminal, idle_s)
        finally:
            terminal.close()
    return {
        "start_s": round(statistics.median(took), 2),
        "empty_start_s": round(statistics.median(_start_of_empty(bank, model) for _ in range(runs)), 2),
        "start_runs": runs,
        "idle_cpu_percent": None if idle is None else round(idle, 2),
    }


def _start_of_empty(bank: Path, model: str) -> float:
    """The same of an app that is a prompt and nothing else."""
    terminal = _Terminal(bank, model, _EMPTY)
    try:
        terminal.until(_SHOWN)
        os.write(terminal.master, _TYPED.encode())
        return terminal.until(_TYPED.encode())
    finally:
        terminal.close()


def _idle(terminal: _Terminal, idle_s: float) -> float:
    """Once the model is loaded or given up: a second in which nearly nothing was done."""
    pid = terminal.process.pid
    for _ in range(60):
        before = cpu_s(pid)
        terminal.rest(1.0)
        if cpu_s(pid) - before < 0.1:
            break
    before = cpu_s(pid)
    terminal.rest(idle_s)
    return 100 * (cpu_s(pid) - before) / idle_s
