"""The examples run as they are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.model
@pytest.mark.slow
def test_first_steps(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, ROOT / "examples" / "first_steps.py", tmp_path / "bank"],
        capture_output=True,
        text=True,
        env={**os.environ, "MNEMOS_KEY_DIR": str(tmp_path / "keys")},
    )
    assert ran.returncode == 0, ran.stderr
    assert "My sister Clara works as a nurse in Leeds." in ran.stdout
    assert ran.stdout.endswith("left: 0\n")
