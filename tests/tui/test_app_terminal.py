"""The app in a real terminal (tmux) on the default model: told, restarted, asked, forgotten."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.tui.conftest import SCRIPT, Command

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
]

FACT = "My sister Clara works as a nurse in Leeds."
QUESTION = "What does my sister Clara do for a living?"


class Tmux:
    """A terminal of 100 x 30 whose screen can be read."""

    def __init__(self, socket: Path, mnemos: Command) -> None:
        self._socket = socket
        environment = {**mnemos.environment, "TERM": "xterm-256color"}
        self._run("-f", os.devnull, "new-session", "-d", "-x", "100", "-y", "30", "sh", env=environment)
        self._run("set", "-g", "default-terminal", "tmux-256color", env=environment)

    def _run(self, *args: str, env: dict[str, str] | None = None) -> str:
        command = ["tmux", "-S", str(self._socket), *args]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=env, timeout=30).stdout

    @property
    def screen(self) -> str:
        return self._run("capture-pane", "-p")

    def type(self, text: str) -> None:
        self._run("send-keys", "-l", text)

    def press(self, *keys: str) -> None:
        self._run("send-keys", *keys)

    def wait_for(self, condition: str | Callable[[str], bool], timeout_s: float = 60.0) -> str:
        """The screen, once it shows the text or meets the condition."""
        end = time.monotonic() + timeout_s
        while True:
            screen = self.screen
            if condition in screen if isinstance(condition, str) else condition(screen):
                return screen
            assert time.monotonic() < end, f"waited for {condition!r} in\n{screen}"
            time.sleep(0.1)

    @property
    def child(self) -> int:
        """The process that the terminal's shell runs."""
        shell = self._run("display-message", "-p", "#{pane_pid}").strip()
        children = Path(f"/proc/{shell}/task/{shell}/children").read_text(encoding="ascii")
        return int(children.split()[0])

    def close(self) -> None:
        self._run("kill-server")


@pytest.fixture
def terminal(mnemos: Command, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tmux]:
    opened = Tmux(tmp_path_factory.mktemp("t") / "s", mnemos)
    yield opened
    opened.close()


def start(terminal: Tmux, *args: str) -> None:
    terminal.type(f"clear; {SCRIPT} {' '.join(args)}; echo ended with $?")
    terminal.press("Enter")


def is_answered(screen: str) -> bool:
    """Whether the reply is over: its speed is shown, and there is nothing left to stop."""
    return "tokens/s" in screen and "esc Stop" not in screen


def test_told_asked_after_a_restart_forgotten_asked_again(mnemos: Command, terminal: Tmux) -> None:
    start(terminal, "chat", "--max-tokens", "24")
    terminal.wait_for("Say something")
    terminal.type(FACT)  # the model is still being loaded
    terminal.press("Enter")
    terminal.wait_for(lambda screen: is_answered(screen) and "no memories" in screen)
    terminal.press("C-q")
    terminal.wait_for("ended with 0")

    start(terminal, "chat", "--max-tokens", "24")
    terminal.wait_for("1 memory to recall from")
    terminal.type(QUESTION)
    terminal.press("Enter")
    screen = terminal.wait_for(
        lambda screen: "1 memory" in screen and is_answered(screen) and "paged" in screen
    )
    terminal.press("F2")
    terminal.wait_for(lambda screen: "1 memory of this reply" in screen and "100% attention" in screen)
    terminal.press("f")
    terminal.wait_for("Forget for good?")
    time.sleep(0.5)  # one key at a time, as a person does
    terminal.press("Right")
    time.sleep(0.5)
    terminal.press("Enter")
    terminal.wait_for("Forgotten for good")
    terminal.press("Enter")
    # A terminal can be looked at while it draws: what counts is that the words go, and stay gone.
    terminal.wait_for(
        lambda screen: "reply forgotten" in screen and "nurse" not in screen.replace(QUESTION, "")
    )
    terminal.press("C-n")
    terminal.wait_for(lambda screen: "new conversation" in screen and "tokens/s" not in screen)
    terminal.type(QUESTION)
    terminal.press("Enter")
    screen = terminal.wait_for(is_answered)
    assert "nurse in Leeds" not in screen
    terminal.press("C-c")
    time.sleep(0.3)
    terminal.press("C-c")
    terminal.wait_for("ended with 0")
    texts = [memory["text"] for memory in mnemos("memory", "list", "--json").json["memories"]]
    assert texts == [QUESTION, QUESTION]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["SIGTERM", "SIGHUP"])
def test_a_signal_leaves_a_terminal_that_works(terminal: Tmux, number: signal.Signals) -> None:
    start(terminal, "chat")
    terminal.wait_for("Say something")
    terminal.wait_for("Nothing is remembered yet")
    os.kill(terminal.child, number)
    screen = terminal.wait_for(f"ended with {128 + number}")
    assert "Say something" not in screen
    terminal.type("echo still $((40 + 2)) here")
    terminal.press("Enter")
    terminal.wait_for("still 42 here")


def test_browsing_without_a_terminal_is_a_usage_error(mnemos: Command) -> None:
    assert mnemos("memory", "browse").code == 2
