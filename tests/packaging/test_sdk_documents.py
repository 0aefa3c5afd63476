"""The SDK's documents: their examples run as they are, their links lead somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "docs" / "sdk" / "tools.md"


@pytest.mark.model
def test_the_example_of_tools_runs(tmp_path: Path) -> None:
    (sample,) = re.findall(r"```python\n(.*?)```", TOOLS.read_text(encoding="utf-8"), re.S)
    (tmp_path / "sample.py").write_text(sample, encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, tmp_path / "sample.py", tmp_path / "bank"],
        capture_output=True,
        text=True,
        env={**os.environ, "MNEMOS_KEY_DIR": str(tmp_path / "keys")},
    )
    assert ran.returncode == 0, ran.stderr
    called, returned, person = ran.stdout.splitlines()
    assert called == "calls get_weather {'city': 'Porto'}"
    assert re.fullmatch(r"returned 17 degrees and raining kept as [a-z2-7]{26}", returned)
    assert person == "name='Alice' age=31"
