"""What an import loads, and what it costs. Each case is a fresh process."""

import json
import subprocess
import sys

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


@pytest.mark.parametrize(
    ("code", "unloaded"),
    [
        ("import mnemos", HEAVY),
        ("import mnemos.errors", HEAVY),
        (HELP, HEAVY),
        ("import mnemos.store.store", ("torch", "triton", "textual", "rich", "typer", "faiss")),
        ("from mnemos import MemoryBank", ("torch", "triton", "textual", "rich", "typer")),
        ("import mnemos.attention.models, mnemos.memory.recall", ("triton", "mnemos.attention.gpu")),
        ("import mnemos.memory.on_device, mnemos.attention.gpu.decoder", ("triton",)),
    ],
    ids=["mnemos", "errors", "help", "store", "bank", "models", "device"],
)
def test_an_import_loads_no_more_than_it_needs(code: str, unloaded: tuple[str, ...]) -> None:
    assert not loaded_by(code) & set(unloaded)


def test_every_public_name_resolves() -> None:
    assert all(getattr(mnemos, name) is not None for name in mnemos.__all__)
    assert set(mnemos.__all__) <= set(dir(mnemos))
    with pytest.raises(AttributeError):
        mnemos.no_such_name  # noqa: B018
