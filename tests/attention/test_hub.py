"""`hub:` names against a hub cache that the test lays out, in processes of their own. No network."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mnemos.attention.hub import HubName
from mnemos.errors import UsageError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def run(code: str, home: Path, **environment: str) -> str:
    """What `code` prints in a process that can reach no hub, `HF_HOME` being the test's."""
    unreachable = {"HF_HOME": str(home), "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_ETAG_TIMEOUT": "1"}
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=kept | unreachable | {"MNEMOS_CACHE_DIR": str(home / "mnemos")} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


FETCH = """
from mnemos.attention.hub import fetch_from_hub
from mnemos.errors import MnemosError
import sys
try:
    print(fetch_from_hub({name!r}))
except MnemosError as error:
    print(type(error).__name__, error)
assert "torch" not in sys.modules
"""


@pytest.fixture
def home(tmp_path: Path, family: Callable[[str], Any]) -> Path:
    """A hub cache that holds acme/tiny."""
    repo = tmp_path / "hub" / "models--acme--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for file in family("qwen3").directory.iterdir():
        (snapshot / file.name).symlink_to(file)
    return tmp_path


def test_what_the_cache_holds_needs_no_network(home: Path) -> None:
    snapshot = home / "hub" / "models--acme--tiny" / "snapshots" / COMMIT
    code = FETCH.format(name="hub:acme/tiny")
    assert run(code, home, HF_HUB_OFFLINE="1") == str(snapshot)
    at_commit = FETCH.format(name=f"hub:acme/tiny@{COMMIT}")
    assert run(at_commit, home, HF_HUB_OFFLINE="1") == str(snapshot)


def test_what_it_lacks_is_said(home: Path) -> None:
    for environment in ({"HF_HUB_OFFLINE": "1"}, {}):
        said = run(FETCH.format(name="hub:acme/other"), home, **environment)
        assert said.startswith("ModelDownloadError hub:acme/other")
        assert "path of a model directory" in said or "check the network" in said


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    code = "import sys; sys.modules['huggingface_hub'] = None\n" + FETCH.format(name="hub:acme/tiny")
    assert run(code, tmp_path) == "UsageError hub:acme/tiny needs huggingface_hub: pip install 'mnemos[hub]'"


def test_a_model_of_the_hub_loads_and_is_shown(home: Path) -> None:
    code = """
from mnemos.attention.registry import show
info = show("hub:acme/tiny")
print(info.title, info.present, info.calibrated, show("hub:acme/other").present)
from mnemos.attention.models import load
model = load("hub:acme/tiny", dtype="fp32")
print(model.name, model.config.architecture, model.calibration.calibrated)
"""
    said = run(code, home, HF_HUB_OFFLINE="1").splitlines()
    assert said == ["acme/tiny True False False", "acme/tiny qwen3 False"]


def test_names_have_a_form() -> None:
    assert HubName.parse("hub:a/b@main") == HubName("a/b", None, "main")
    assert HubName.parse("hub:a/b-GGUF/q4/x.gguf@v1").title == "a/b-GGUF/q4/x.gguf"
    for name in ("hub:", "hub:a", "hub:a/b/c", "hub:a/../b/x.gguf", "hub:a/b@"):
        with pytest.raises(UsageError, match="is no hub name"):
            HubName.parse(name)
