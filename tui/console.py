"""What people see beside the data: stderr, prompts, progress and exit codes. No other module writes there."""

import json
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import NoReturn

import typer

from mnemos.errors import InvalidTextError, MnemosError, UsageError
from mnemos.tui import settings

DEBUG_ENV = "MNEMOS_DEBUG"
INTERRUPTED = 130
MAX_INPUT_BYTES = 16 * 1024 * 1024  # of one text on standard input; the bank's own limit is lower

_LIVE_S, _PIPED_S = 0.2, 15.0  # between two lines of one that is live

is_quiet = False  # set by `--quiet`
_WITHOUT_SETTINGS = ("config", "help", "-h", "--help", "--version")  # they work beside a broken settings file

Progress = Callable[[int, int], None]  # (done, total)


def run(app: Callable[..., object], args: Sequence[str]) -> int:
    """Runs the command line; the exit code. Expected errors become one line on stderr, never a traceback."""
    _prepare_process()
    wants_json = "--json" in (args[: args.index("--")] if "--" in args else args)
    try:
        with nullcontext() if not args or args[0] in _WITHOUT_SETTINGS else settings.applied():
            result = app(args=list(args), prog_name="mnemos", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except BrokenPipeError:
        return _reader_is_gone()
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except typer.Abort:
        return MnemosError.exit_code
    except typer.TyperException as error:
        return _fail("UsageError", _usage(error), getattr(error, "exit_code", 2), wants_json)
    except MnemosError as error:
        return _fail(type(error).__name__, str(error), error.exit_code, wants_json)
    except OSError as error:
        what = error.strerror or type(error).__name__
        return _fail("OSError", f"{error.filename}: {what}" if error.filename else what, 1, wants_json)
    except Exception as error:
        if os.environ.get(DEBUG_ENV):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        # Not the exception's own words: they may hold a memory's.
        what = f"unexpected {type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
        return _fail("InternalError", f"{what}; set {DEBUG_ENV}=1 for the traceback", 1, wants_json)


def _prepare_process() -> None:
    with suppress(ImportError, ValueError, OSError):
        import resource  # absent on Windows

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold memories and keys
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    with suppress(ValueError, OSError):
        signal.signal(signal.SIGTERM, _terminate)


def _terminate(_signal: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


def _fail(kind: str, message: str, exit_code: int, wants_json: bool) -> int:
    say(f"error: {message}")
    if wants_json:
        with suppress(BrokenPipeError):
            print(json.dumps({"error": {"type": kind, "message": message}}), flush=True)
    return exit_code


def _usage(error: typer.TyperException) -> str:
    """What is wrong with a command line, on one line; a group without a command shows its help before."""
    message = error.format_message().replace("Value error, ", "")
    context = getattr(error, "ctx", None)
    if "\n" in message:
        print(message, end="\n\n", file=sys.stderr)
        message = "a command is missing"
    return f"{message} (see `{context.command_path} --help`)" if context else message


def _reader_is_gone() -> int:
    # What is still buffered must not raise again when the interpreter flushes it at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return MnemosError.exit_code


def say(line: str) -> None:
    """One line for people, control characters escaped; with `--quiet` errors alone."""
    if is_quiet and not line.startswith("error: "):
        return
    with suppress(BrokenPipeError):
        print(visible(line), file=sys.stderr, flush=True)


def visible(text: str, *, keep: str = "") -> str:
    """The text with control and direction-changing characters escaped, so that it can't drive a terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else _escape(char) for char in text)


def _escape(char: str) -> str:
    # Spaces other than U+0020 and unassigned characters aren't "printable" to Python, but harmless.
    return char if char.isspace() and ord(char) > 0x9F and char not in "\u2028\u2029" else ascii(char)[1:-1]


def is_interactive() -> bool:
    """Whether a person can be asked: both standard input and stderr are terminals."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(question: str) -> bool:
    """Asks on stderr; only y or yes means yes."""
    return ask(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def ask(question: str) -> str:
    """One line typed by the person, without its line break; empty at end of input."""
    sys.stderr.write(question)
    sys.stderr.flush()
    return sys.stdin.readline().rstrip("\r\n")


def ask_secret(question: str) -> str:
    """One line typed by the person, not shown; empty at end of input."""
    from getpass import getpass

    try:
        return getpass(question, stream=sys.stderr)
    except EOFError:
        return ""


def new_passphrase(variable: str, question: str) -> str:
    """From the environment, or typed twice by the person. UsageError: empty, not the same, nobody there."""
    if given := os.environ.get(variable):
        return given
    require_person(f"set {variable} to the passphrase")
    first = ask_secret(question)
    if not first:
        raise UsageError("the passphrase is empty; nothing was changed")
    if ask_secret("The same again: ") != first:
        raise UsageError("the two passphrases differ; nothing was changed")
    return first


def text_or_stdin(argument: str) -> str:
    """The argument, or all of standard input for `-`. Raises InvalidTextError for what is not UTF-8."""
    if argument == "-":
        return decode(sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)).removesuffix("\n")
    return decode(os.fsencode(argument))


def decode(data: bytes) -> str:
    """Text as it was given. Raises InvalidTextError when it is too large or is not UTF-8."""
    if len(data) > MAX_INPUT_BYTES:
        raise InvalidTextError(
            f"the text is over {MAX_INPUT_BYTES >> 20} MiB; ingest it as a file, or split it"
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidTextError(f"the text is not UTF-8 (byte {error.start}); convert it first") from None


def require_person(what_instead: str) -> None:
    """Raises UsageError, with what to do instead, where nobody can be asked."""
    if not is_interactive():
        raise UsageError(f"there is no terminal to confirm on; {what_instead}")


@contextmanager
def live_line() -> Iterator[Callable[[str], None]]:
    """A line on stderr that is written anew each time; where it is no terminal, now and then as a new one."""
    if is_quiet:
        yield lambda _line: None
        return
    shown_s, is_terminal = -math.inf, sys.stderr.isatty()

    def show(line: str) -> None:
        nonlocal shown_s
        now = time.monotonic()
        if now - shown_s < (_LIVE_S if is_terminal else _PIPED_S):
            return
        shown_s = now
        if not is_terminal:
            say(line)
            return
        width = max(os.get_terminal_size(sys.stderr.fileno()).columns - 1, 1)
        sys.stderr.write(f"\r{visible(line)[:width]}\x1b[K")
        sys.stderr.flush()

    try:
        yield show
    finally:
        if is_terminal and shown_s > -math.inf:
            sys.stderr.write("\n")


@contextmanager
def progress(label: str, *, in_bytes: bool = False) -> Iterator[Progress]:
    """A progress bar on stderr, shown once there is progress; one quiet line where it is no terminal."""
    if is_quiet:
        yield lambda _done, _total: None
        return
    if not sys.stderr.isatty():
        told = False

        def tell(_done: int, _total: int) -> None:
            nonlocal told
            if not told:
                say(f"{label} ...")
                told = True

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    amount = DownloadColumn() if in_bytes else MofNCompleteColumn()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), amount, TimeRemainingColumn())
    bar = Bar(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(label, total=None)

    def advance(done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield advance
    finally:
        bar.stop()
