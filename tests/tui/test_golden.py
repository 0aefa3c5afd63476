"""What the commands print, whole: for a terminal, for a pipe, and as JSON.

`MNEMOS_DRAW_GOLDEN=1 pytest tests/tui/test_golden.py` writes the outputs anew; read them before you
keep them.
"""

import os
import re
from pathlib import Path

import pytest
from tests.tui.conftest import Command, OpenTerminal

GOLDEN = Path(__file__).parent / "golden"
COMMANDS = [
    "memory list",
    "memory list --sort size --limit 2",
    "memory list --where tag=work",
    "memory show {first}",
    "memory search Clara --router lexical",
    "memory search Clara --router lexical --explain",
    "memory stats",
    "memory quota",
    "session list",
    "bank verify",
    "memory forget --match boat --dry-run",
    "memory forget --match nobody --dry-run",
    "memory pin {first}",
    "memory hide {first}",
    "memory list --hidden",
    "memory forget {first} --dry-run",
    "memory receipt list",
    "memory show 0000",
    "memory list --sort colour",
    "config show",
]
ON_A_TERMINAL = ["memory list", "memory show {first}", "memory search Clara --router lexical --explain"]
_CHANGING = [
    (re.compile(r'"token": "[^"]+"'), '"token": "<token>"'),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?Z?)?"), "<moment>"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "<digest>"),
    (re.compile(r'"signature": "[^"]+"'), '"signature": "<signature>"'),
    (
        re.compile(r'("(?:disk_)?bytes"|"cut_bytes"|"freed_bytes"|disk_bytes|"bytes_on_disk")([:\t ]+)\d+'),
        r"\1\2<bytes>",
    ),
    (re.compile(r"\b\d+ (B|bytes) on disk"), "<bytes> on disk"),
    (re.compile(r"\d\.\d{3,}(e-\d+)?"), "<score>"),
]


@pytest.fixture
def first(mnemos: Command) -> str:
    ids = [
        mnemos("remember", "--json", "--tag", tag, "--", text).json["id"]
        for tag, text in (
            ("work", "The meeting with the auditors is on Tuesday at four."),
            ("family", "My sister Clara works as a nurse in Leeds."),
            ("home", "We sold the boat, the one with the blue sail, and bought a van."),
        )
    ]
    return str(ids[1])


@pytest.mark.parametrize("form", ["plain", "json"])
def test_what_a_pipe_gets(mnemos: Command, first: str, form: str) -> None:
    shown = []
    for line in COMMANDS:
        words = line.format(first=first).split()
        ran = mnemos(*words, *(["--json"] if form == "json" else []))
        name = line.format(first="<id>")
        shown.append(f"$ mnemos {name} [exit {ran.code}]\n{ran.out}" + _stderr(ran.err))
    compare(form, "\n".join(shown), mnemos, first)


def test_what_a_terminal_shows(mnemos: Command, first: str, open_terminal: OpenTerminal) -> None:
    shown = []
    for line in ON_A_TERMINAL:
        opened = open_terminal(mnemos, *line.format(first=first).split())
        code = opened.end()
        plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", opened.seen).replace("\r\n", "\n")
        shown.append(f"$ mnemos {line.format(first='<id>')} [exit {code}]\n{plain}")
    compare("table", "\n".join(shown), mnemos, first)


def _stderr(text: str) -> str:
    return "".join(f"! {line}\n" for line in text.splitlines())


def compare(name: str, text: str, mnemos: Command, first: str) -> None:
    for path in (mnemos.bank, mnemos.bank.parent):
        text = text.replace(str(path), "<place>")
    ids = [each["id"] for each in mnemos("memory", "list", "--hidden", "--json").json["memories"]]
    for each in ids:
        text = text.replace(each, "<id>").replace(each[:8], "<short>")
    for pattern, mark in _CHANGING:
        text = pattern.sub(mark, text)
    text = "\n".join(line.rstrip(" ") for line in text.splitlines()) + "\n"
    kept = GOLDEN / f"{name}.txt"
    if os.environ.get("MNEMOS_DRAW_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        kept.write_text(text, encoding="utf-8")
    assert text == kept.read_text(encoding="utf-8")
