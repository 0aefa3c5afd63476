"""What an import loads, and what it costs. Each case is a fresh process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mnemos

HEAVY = (
    "torch",
    "triton",
    "textual",
    "sqlalchemy",
    "sqlcipher3",
    "pydantic",
    "numpy",
    "faiss",
    "rich.console",
)
HELP = """
import sys
from mnemos.tui.main import main
sys.argv = ["mnemos", "--help"]
try:
    main()
except SystemExit:
    pass
"""


def loaded_by(code: str) -> set[str]:
    """Names of the modules in `sys.modules` after the code ran."""
    probe = f"{code}\nimport json, sys; print(); print(json.dumps(sorted(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return set(json.loads(ran.stdout.splitlines()[-1]))


def cpu_seconds(*command: str) -> float:
    """User and system time of a process, the least of five; the first one writes the bytecode."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    times = []
    for _ in range(5):
        before = os.times()
        subprocess.run([sys.executable, *command], check=True, capture_output=True, env=environment)
        after = os.times()
        times.append(sum(after[2:4]) - sum(before[2:4]))
    return min(times)


@pytest.mark.parametrize(
    ("code", "unloaded"),
    [
        ("import mnemos", HEAVY),
        ("import mnemos.errors", HEAVY),
        (HELP, HEAVY),
        ("import mnemos.store.store", ("torch", "triton", "textual", "rich", "typer", "faiss")),
        ("from mnemos import MemoryBank", ("torch", "triton", "textual", "rich", "typer")),
    ],
    ids=["mnemos", "errors", "help", "store", "bank"],
)
def test_an_import_loads_no_more_than_it_needs(code: str, unloaded: tuple[str, ...]) -> None:
    assert not loaded_by(code) & set(unloaded)


def test_every_public_name_resolves() -> None:
    assert all(getattr(mnemos, name) is not None for name in mnemos.__all__)
    assert set(mnemos.__all__) <= set(dir(mnemos))
    with pytest.raises(AttributeError):
        mnemos.no_such_name  # noqa: B018


@pytest.mark.parametrize(
    ("code", "limit_s"),
    [("import mnemos", 0.1), ("from mnemos import MemoryBank", 0.7)],
    ids=["mnemos", "bank"],
)
def test_an_import_is_quick(code: str, limit_s: float) -> None:
    assert cpu_seconds("-c", code) < limit_s


def test_help_is_quick() -> None:
    script = Path(sys.executable).with_name("mnemos")
    assert cpu_seconds(str(script), "--help") < 0.3
