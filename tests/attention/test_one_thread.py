"""Work that PyTorch keeps to one thread, while other threads keep theirs."""

import sys
from threading import Thread

import pytest
import torch

from mnemos.attention.one_thread import one_thread


@pytest.mark.skipif(sys.platform != "linux", reason="OpenMP is found by its name on Linux")
def test_a_thread_works_alone_and_the_others_keep_their_number() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    seen: list[int] = []

    def work() -> None:
        with one_thread():
            seen.append(torch.get_num_threads())
            another = Thread(target=lambda: seen.append(torch.get_num_threads()))
            another.start()
            another.join()
        seen.append(torch.get_num_threads())

    try:
        thread = Thread(target=work)
        thread.start()
        thread.join()
        assert seen == [1, 3, 3] and torch.get_num_threads() == 3
        with pytest.raises(ValueError, match="mine"), one_thread():
            raise ValueError("mine")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif("mkl_get_max_threads" not in torch.__config__.parallel_info(), reason="built without MKL")
def test_mkl_keeps_to_it_too() -> None:
    def mkl_threads() -> int:
        (line,) = (line for line in torch.__config__.parallel_info().splitlines() if "mkl_get_max" in line)
        return int(line.rpartition(":")[2])

    before, seen = torch.get_num_threads(), list[int]()
    torch.set_num_threads(3)
    try:
        usual = mkl_threads()
        with one_thread():
            seen.append(mkl_threads())
            another = Thread(target=lambda: seen.append(mkl_threads()))
            another.start()
            another.join()
        assert seen == [1, usual] and mkl_threads() == usual > 1
    finally:
        torch.set_num_threads(before)
