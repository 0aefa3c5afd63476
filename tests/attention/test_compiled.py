"""Compiling the kernels: kept once made, refused when wrong, done without when nothing can make them."""

import ctypes
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mnemos.attention import compiled
from mnemos.attention.models import load
from mnemos.attention.step_compiled import PackedWeights
from mnemos.errors import UsageError

needs_compiler = pytest.mark.skipif(compiled.find_compiler(None) is None, reason="no C compiler here")


@pytest.fixture(autouse=True)
def anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test asks for the kernels as a process of its own would."""
    monkeypatch.delenv("MNEMOS_COMPILE", raising=False)
    monkeypatch.delenv("CC", raising=False)
    flags = ["-O0" if flag == "-O3" else flag for flag in compiled._FLAGS]  # compiles in a tenth of the time
    monkeypatch.setattr(compiled, "_FLAGS", tuple(flags))
    compiled._kernels.cache_clear()
    yield
    compiled._kernels.cache_clear()


def compiler_that(path: Path, does: str) -> str:
    path.write_text(f"#!/bin/sh\n{does}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@needs_compiler
def test_it_is_compiled_once_and_kept(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, log = compiled.find_compiler(None), tmp_path / "log"
    monkeypatch.setenv("CC", compiler_that(tmp_path / "cc", f'echo once >> {log}; exec {real} "$@"'))
    for _ in range(2):
        compiled._kernels.cache_clear()
        assert compiled.kernels(True) is not None
    assert log.read_text() == "once\n"
    kept = list((cache / "compiled").iterdir())
    assert [path.suffix for path in kept] == [".so"]
    assert (cache / "compiled").stat().st_mode & 0o077 == 0


@needs_compiler
def test_a_torn_library_is_made_anew(cache: Path) -> None:
    compiler = compiled.find_compiler(None)
    assert compiler is not None
    path = compiled.library_path(compiler)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x7fELF")
    assert compiled.kernels() is not None
    assert path.stat().st_size > 1000


@needs_compiler
def test_the_portable_code_makes_the_same_products(cache: Path, tmp_path: Path) -> None:
    compiler = compiled.find_compiler(None)
    assert compiler is not None
    compiled.build(compiler, tmp_path / "portable.so", "-DMNEMOS_PORTABLE")
    portable, native = compiled._load(tmp_path / "portable.so"), compiled.kernels(True)
    assert native is not None
    weight = torch.randn(21, 100, generator=torch.Generator().manual_seed(0))
    x = torch.randn(6, 100, generator=torch.Generator().manual_seed(1))
    for form in ("int4", "int8"):
        packed = [PackedWeights(library, weight, form) for library in (portable, native)]  # type: ignore[arg-type]
        assert torch.equal(packed[0].data, packed[1].data)
        assert torch.allclose(packed[0](x), packed[1](x), atol=1e-4)


@pytest.mark.parametrize(
    "does",
    ["exit 1", "exit 0", 'echo "no such thing" >&2; exit 3', "kill -9 $$"],
    ids=["fails", "makes nothing", "says why", "dies"],
)
def test_without_a_working_compiler_there_are_no_kernels(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str
) -> None:
    monkeypatch.setenv("CC", compiler_that(tmp_path / "cc", does))
    assert compiled.kernels() is None
    with pytest.raises(UsageError, match="no compiled kernels"):
        compiled.kernels(True)
    assert not list((cache / "compiled").iterdir())


@needs_compiler
def test_a_library_of_something_else_is_refused(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = compiled.find_compiler(None)
    # The same code with a rounding that is wrong by a code: it compiles, and its products are not right.
    broken = f'exec {real} -Dlrintf=floorf -DBYTES4=164 "$@"'
    monkeypatch.setenv("CC", compiler_that(tmp_path / "cc", broken))
    assert compiled.kernels() is None


def test_no_compiler_at_all(hf_directory: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert compiled.kernels() is None
    decoder = load(hf_directory).decoder
    assert decoder.compiled is None
    assert decoder.forward([5], decoder.new_cache(4)).isfinite().all()
    with pytest.raises(UsageError, match="install gcc or clang"):
        load(hf_directory, compile=True)
    monkeypatch.setenv("MNEMOS_COMPILE", "on")
    with pytest.raises(UsageError, match="install gcc or clang"):
        load(hf_directory)


def test_it_can_be_turned_off(hf_directory: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(hf_directory, compile=False).decoder.compiled is None
    monkeypatch.setenv("MNEMOS_COMPILE", "off")
    assert load(hf_directory).decoder.compiled is None
    assert not (cache / "compiled").exists()
    monkeypatch.setenv("MNEMOS_COMPILE", "perhaps")
    with pytest.raises(UsageError, match="auto, on or off"):
        load(hf_directory)


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MNEMOS_CACHE_DIR", str(tmp_path / "file"))
    assert compiled.kernels() is None


def test_the_structures_are_as_large_as_the_compiler_says(cache: Path) -> None:
    library = compiled.kernels()
    if library is None:
        pytest.skip("no C compiler here")
    from mnemos.attention import step_compiled

    sizes = (ctypes.c_size_t * 5)()
    library.mnemos_sizes(sizes)
    python = (
        compiled.Matrix,
        step_compiled._Layer,
        step_compiled._Model,
        step_compiled._Call,
        step_compiled._Place,
    )
    assert list(sizes) == [ctypes.sizeof(each) for each in python]
