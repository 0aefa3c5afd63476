"""The kernels of `native/`, compiled on this machine when they are first wanted and kept in the cache.

Where there is no C compiler, or what it makes fails its test, there are no kernels: whoever asks goes on with
PyTorch's own.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from functools import cache
from importlib import resources
from pathlib import Path
from threading import Lock

import numpy as np

from mnemos.attention.cache_dir import atomic_path, cache_dir
from mnemos.errors import UsageError

COMPILE_ENV = "MNEMOS_COMPILE"
COMPILERS = ("cc", "gcc", "clang")
ABI = 3
_FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=off", "-Wno-psabi", "-fPIC", "-shared", "-pthread")
_TARGETS = (("-march=native",), ("-mcpu=native",), ())  # the first that the compiler takes
_COMPILE_S = 120
_building = Lock()


class Matrix(ctypes.Structure):
    """A packed matrix, as `native/packed.h` has it."""

    _fields_ = (
        ("bits", ctypes.c_int32),
        ("out", ctypes.c_int32),
        ("inner", ctypes.c_int32),
        ("groups", ctypes.c_int32),
        ("data", ctypes.c_void_p),
    )


class Packed(ctypes.Structure):
    """KV of one span, and where its numbers go, as `native/read.c` has it."""

    _fields_ = (
        ("k_codes", ctypes.c_void_p),
        ("k_scales", ctypes.c_void_p),
        ("v_codes", ctypes.c_void_p),
        ("v_scales", ctypes.c_void_p),
        ("k", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
        ("bits", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("tokens", ctypes.c_int32),
        ("dim", ctypes.c_int32),
        ("stride", ctypes.c_int64),
        ("value_group", ctypes.c_int32),
        ("is_bf16", ctypes.c_int32),
        ("turns", ctypes.c_void_p),
        ("kv_heads", ctypes.c_int32),
    )


SPAN_KEYS = np.dtype(
    [("codes", np.uint64), ("scale", np.uint64), ("tokens", np.int32), ("stride", np.int32)], align=True
)


def wanted(choice: bool | None = None) -> bool | None:
    """Whether to compile: True demands it, None leaves it to what there is; `MNEMOS_COMPILE` stands for None.

    Raises UsageError for a value of the variable that means nothing.
    """
    if choice is not None:
        return choice
    named = os.environ.get(COMPILE_ENV, "auto").lower() or "auto"
    meanings = {"auto": None, "1": True, "on": True, "0": False, "off": False}
    if named not in meanings:
        raise UsageError(f"{COMPILE_ENV} is '{named}'; use auto, on or off")
    return meanings[named]


def kernels(choice: bool | None = None) -> ctypes.CDLL | None:
    """The compiled kernels, or None without them; compiles them at the first call of a machine.

    Raises UsageError when they are demanded and can't be had.
    """
    choice = wanted(choice)
    if choice is False:
        return None
    with _building:
        library, reason = _kernels(os.environ.get("CC"))
    if library is None and choice:
        raise UsageError(f"there are no compiled kernels here: {reason}; use auto or off")
    return library


@cache
def _kernels(cc: str | None) -> tuple[ctypes.CDLL | None, str]:
    """The library, or None and why not. Asked once a process."""
    compiler = find_compiler(cc)
    if compiler is None:
        return None, "no C compiler was found (install gcc or clang, or name one in CC)"
    try:
        path = library_path(compiler)
        try:
            return _load(path), ""
        except (OSError, AttributeError):  # not there yet, or torn: it is made anew
            build(compiler, path)
            return _load(path), ""
    except (OSError, subprocess.SubprocessError, ValueError, AttributeError) as error:
        return None, str(error)


def find_compiler(cc: str | None) -> str | None:
    """The path of the C compiler: the one named, or the first there is."""
    if os.name != "posix":  # the kernels use POSIX threads
        return None
    return next((path for name in ([cc] if cc else COMPILERS) if (path := shutil.which(name))), None)


def sources() -> dict[str, bytes]:
    """The kernels' source files by name."""
    folder = resources.files("mnemos.attention").joinpath("native")
    return {
        entry.name: entry.read_bytes()
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith((".c", ".h"))
    }


def library_path(compiler: str) -> Path:
    """Where the compiled library is kept: by what it is made of and with, and for which processor."""
    made_of = hashlib.sha256()
    described = [compiler, str(Path(compiler).resolve().stat().st_mtime_ns), *_FLAGS, _processor()]
    for part in (*(text.encode() for text in described), *sources().values()):
        made_of.update(len(part).to_bytes(8, "big") + part)
    return cache_dir() / "compiled" / f"{made_of.hexdigest()[:32]}.so"


def build(compiler: str, path: Path, *flags: str) -> None:
    """Compiles the library into `path`. Raises ValueError with the compiler's words, or OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    refusal = ValueError("it compiled nothing")
    for target in _TARGETS:
        try:
            return _compile([compiler, *_FLAGS, *flags, *target], path)
        except ValueError as error:
            refusal = error
    raise refusal


def _compile(command: list[str], path: Path) -> None:
    """Puts the library at `path` once it has passed its test. Raises ValueError with the compiler's words."""
    folder = resources.as_file(resources.files("mnemos.attention").joinpath("native"))
    with folder as source, atomic_path(path) as temporary:
        done = subprocess.run(
            [*command, *map(str, sorted(source.glob("*.c"))), "-o", str(temporary), "-lm"],
            capture_output=True,
            timeout=_COMPILE_S,
            check=False,
        )
        if done.returncode:
            said = done.stderr.decode(errors="replace").splitlines()
            first = next((line for line in said if "error" in line), said[0] if said else "no message")
            raise ValueError(f"{Path(command[0]).name} failed: {first[:200]}")
        _check(_load(temporary))


def _processor() -> str:
    """What compiled code depends on: a cache may be shared by machines that differ."""
    described = platform.platform() + platform.machine() + platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        described += "".join(
            sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
        )
    return described


def _load(path: Path) -> ctypes.CDLL:
    """Raises OSError where there is no library, AttributeError or ValueError where it is another."""
    library = ctypes.CDLL(str(path))
    pointer, integer, real = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
    library.mnemos_step.argtypes = [pointer, pointer]
    library.mnemos_product.argtypes = [pointer, pointer, integer, pointer, integer]
    library.mnemos_packed_bytes.argtypes = [integer, integer, integer]
    library.mnemos_packed_bytes.restype = ctypes.c_size_t
    library.mnemos_pack.argtypes = [pointer, integer, integer, integer, real, pointer, integer]
    library.mnemos_pack.restype = real
    library.mnemos_expand_kv.argtypes = [pointer, integer]
    library.mnemos_turn_keys.argtypes = [pointer, ctypes.c_int64, integer, integer, integer, integer, pointer]
    weighing = library.mnemos_route_mass
    weighing.argtypes = [pointer, integer, pointer, integer, integer, pointer, pointer, integer]
    if library.mnemos_abi() != ABI:
        raise ValueError("the compiled kernels are of another version")
    return library


def _check(library: ctypes.CDLL) -> None:
    """A product of each format against numpy's. Raises ValueError when the compiler made something else."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((17, 96), np.float32)
    x = random.standard_normal((5, 96), np.float32)
    exact = x @ weight.T
    for bits, room in ((4, 3.0), (8, 0.3)):
        packed = np.zeros(library.mnemos_packed_bytes(17, 96, bits), np.uint8)
        library.mnemos_pack(weight.ctypes.data, 17, 96, bits, 0.0, packed.ctypes.data, 2)
        matrix = Matrix(bits, 17, 96, 3, packed.ctypes.data)
        found = np.zeros((5, 17), np.float32)
        failed = library.mnemos_product(ctypes.byref(matrix), x.ctypes.data, 5, found.ctypes.data, 2)
        if failed or not np.abs(found - exact).max() < room:
            raise ValueError("the compiler's result fails its test")
    if not (_weighs(library, random) and _expands(library)):
        raise ValueError("the compiler's result fails its test")


def _weighs(library: ctypes.CDLL, random: np.random.Generator) -> bool:
    """Whether the mass of seven keys is numpy's."""
    codes = random.integers(-127, 128, (7, 32), np.int8)
    scale, queries = np.full(32, 0.01, np.float32), random.standard_normal((32, 8), np.float32)
    keys = np.array([(codes.ctypes.data, scale.ctypes.data, 7, 32)], SPAN_KEYS)
    sums, tops = (np.zeros((1, 8), np.float32) for _ in range(2))
    to = (sums.ctypes.data, tops.ctypes.data)
    failed = library.mnemos_route_mass(keys.ctypes.data, 1, queries.ctypes.data, 8, 32, *to, 2)
    exact = np.log(np.exp((codes * scale) @ queries).sum(axis=0))
    return not failed and bool(np.abs(np.log(sums[0]) + tops[0] - exact).max() < 1e-3)


def _expands(library: ctypes.CDLL) -> bool:
    """Whether the keys and values of one token are what they are by hand."""
    codes, of_value = np.arange(32, dtype=np.uint8), np.array([0.5, -1], np.float16)
    scales, found = np.repeat(of_value, 32), np.zeros((2, 32), np.float32)
    of_codes, of_keys = codes.ctypes.data, scales.ctypes.data
    to = (found[0].ctypes.data, found[1].ctypes.data)
    packed = Packed(of_codes, of_keys, of_codes, of_value.ctypes.data, *to, 8, 1, 1, 32, 32, 32, 0, None, 1)
    failed = library.mnemos_expand_kv(ctypes.byref(packed), 1)
    return not failed and bool((found == codes * np.float32(0.5) - 1).all())
