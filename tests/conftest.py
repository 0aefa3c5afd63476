"""Every test runs with keys and caches of its own, never with those of the person at the keyboard."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from mnemos.attention.models import LanguageModel

# A runner that was started in the background ignores Ctrl+C, and the processes of tests would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_keys(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Master keys of this test's banks go to a directory of the test's own."""
    directory = tmp_path_factory.mktemp("keys")
    monkeypatch.setenv("MNEMOS_KEY_DIR", str(directory))
    for name in ("MNEMOS_BANK", "MNEMOS_NAMESPACE", "MNEMOS_MODEL", "MNEMOS_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)
    return directory


@pytest.fixture(scope="session")
def language_model() -> Iterator[LanguageModel]:
    """The default model as people run it, fetched as theirs would be."""
    from mnemos.attention.models import load

    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    yield load()
