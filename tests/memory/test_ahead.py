"""Work beside the caller's: its result, its error, and that the block outlasts it."""

import threading

import pytest

from mnemos.memory.ahead import Ahead


def test_it_runs_beside_the_caller() -> None:
    go_on = threading.Event()

    def work() -> str:
        assert go_on.wait(10)
        return threading.current_thread().name

    with Ahead(work) as ahead:
        go_on.set()  # only a caller that isn't waiting gets here
        assert ahead.result() == "mnemos-ahead"


def test_what_it_raises_is_raised_where_its_result_is_asked_for() -> None:
    def work() -> None:
        raise KeyError("gone")

    with pytest.raises(KeyError, match="gone"), Ahead(work) as ahead:
        ahead.result()


def test_the_block_waits_for_it_though_the_caller_failed() -> None:
    go_on, done = threading.Event(), []

    def work() -> None:
        assert go_on.wait(10)
        done.append(1)

    with pytest.raises(ValueError, match="mine"), Ahead(work):
        go_on.set()
        raise ValueError("mine")
    assert done == [1]
