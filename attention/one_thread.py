"""Work of one thread that PyTorch is not to spread over others."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch and compiled code use the calling thread alone in the block; other threads keep theirs.

    A small piece of work beside another one would otherwise start a team of threads of its own, which wait
    for each other in the way of both. MKL, which multiplies matrices for PyTorch, has a number of its own.
    Where PyTorch's OpenMP can't be reached nothing is changed.
    """
    before = torch.get_num_threads()  # which also has this thread take over the number of all
    set_threads = _set_threads()
    if set_threads is None or before == 1:
        yield
        return
    set_mkl = _set_mkl_threads()
    set_threads(1)
    mkl_before = 0 if set_mkl is None else set_mkl(1)
    try:
        yield
    finally:
        if set_mkl is not None:
            set_mkl(mkl_before)
        set_threads(before)


@lru_cache
def _set_threads() -> "Callable[[int], None] | None":
    """OpenMP's number of threads of the calling thread; `torch.set_num_threads` is for those to come too."""
    try:
        found = ctypes.CDLL(None).omp_set_num_threads
    except (OSError, AttributeError, TypeError):  # not on this system, or under another name
        return None
    found.argtypes, found.restype = [ctypes.c_int], None
    return found


@lru_cache
def _set_mkl_threads() -> "Callable[[int], int] | None":
    """MKL's number of threads of the calling thread, 0 for that of all; gives what it was."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        found = ctypes.CDLL(str(library)).MKL_Set_Num_Threads_Local
    except (OSError, AttributeError):  # not on this system, or PyTorch was built without it
        return None
    found.argtypes, found.restype = [ctypes.c_int], ctypes.c_int
    return found
