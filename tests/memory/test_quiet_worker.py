"""Work beside searches: it waits while one is in progress, and not for ever."""

import time
from threading import Event

import pytest

from mnemos.memory import quiet_worker
from mnemos.memory.quiet_worker import QuietWorker


def test_a_piece_at_hand_gets_no_further_while_somebody_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet_worker, "_PATIENCE_S", 30.0)
    begun, go_on, steps = Event(), Event(), list[int]()

    def piece() -> bool | None:
        begun.set()
        assert go_on.wait(20)
        for step in range(3):
            worker.give_way()
            steps.append(step)
        return None

    worker = QuietWorker(piece)
    worker.wake()
    assert begun.wait(20)
    with worker.searching():
        with worker.searching():  # of another thread, say
            assert not worker.is_quiet
        go_on.set()
        time.sleep(0.05)
        assert steps == []
    worker.wait(20)
    assert steps == [0, 1, 2] and not worker.is_quiet


def test_no_piece_begins_while_somebody_searches_and_a_close_ends_the_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quiet_worker, "_PATIENCE_S", 30.0)
    calls: list[int] = []

    def piece() -> bool | None:
        calls.append(1)
        return None

    worker = QuietWorker(piece)
    with worker.searching():
        worker.wake()
        time.sleep(0.05)
        assert calls == []
        worker.close()
    assert calls == []


def test_where_there_always_is_a_search_the_work_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet_worker, "_PATIENCE_S", 0.01)
    calls: list[int] = []

    def piece() -> bool | None:
        calls.append(1)
        return True if len(calls) < 3 else None

    worker = QuietWorker(piece)
    with worker.searching():
        worker.wake()
        worker.wait(20)
    assert len(calls) == 3


def test_a_search_that_fails_has_ended() -> None:
    worker = QuietWorker(lambda: None)
    with pytest.raises(ValueError, match="mine"), worker.searching():
        raise ValueError("mine")
    started = time.monotonic()
    worker.give_way()
    assert time.monotonic() - started < 0.3
