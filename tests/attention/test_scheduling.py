"""Turns on a model: fairness, company, interruptions, and errors that stay with their own."""

import itertools
import threading
import time
from collections.abc import Callable, Sequence

import pytest

from mnemos.attention.scheduling import Scheduler, pieces


class Model:
    """Notes each batch and each piece; takes `step_s` for either."""

    def __init__(self, step_s: float = 0.0) -> None:
        self.step_s = step_s
        self.log: list[tuple[str, tuple[str, ...]]] = []
        self.inside = 0

    def run_batch(self, rows: Sequence[str]) -> list[str | Exception]:
        self._run("batch", rows)
        return [ValueError(row) if row.startswith("bad") else row.upper() for row in rows]

    def piece(self, name: str) -> Callable[[], str]:
        def work() -> str:
            self._run("piece", [name])
            return name

        return work

    def _run(self, kind: str, names: Sequence[str]) -> None:
        self.inside += 1
        assert self.inside == 1, "one thing at a time runs on the model"
        self.log.append((kind, tuple(names)))
        time.sleep(self.step_s)
        self.inside -= 1


def together(*works: Callable[[], None]) -> list[BaseException]:
    """Runs each in a thread of its own, all from the same moment on; what they raised."""
    raised: list[BaseException] = []
    start = threading.Barrier(len(works))

    def run(work: Callable[[], None]) -> None:
        start.wait()
        try:
            work()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads), "nobody waits for ever"
    return raised


def test_who_is_alone_runs_in_its_own_thread() -> None:
    ran_in: list[int] = []
    scheduler: Scheduler[str, str] = Scheduler(lambda rows: [ran_in.append(threading.get_ident()) or "x"])  # type: ignore[func-returns-value]
    for _ in range(3):
        assert scheduler.step("a", "row") == "x"
        assert scheduler.run(threading.get_ident, 5) == threading.get_ident()
    assert set(ran_in) == {threading.get_ident()}
    assert (scheduler.steps, scheduler.batches, scheduler.largest) == (3, 3, 1)


def test_conversations_go_together_and_each_gets_its_own() -> None:
    model = Model(0.004)
    scheduler = Scheduler(model.run_batch)

    def talk(name: str) -> Callable[[], None]:
        def work() -> None:
            for count in range(20):
                assert scheduler.step(name, f"{name}{count}") == f"{name}{count}".upper()

        return work

    assert not together(*(talk(name) for name in "abcdefgh"))
    assert scheduler.steps == 160
    assert scheduler.largest == 8
    assert scheduler.batches < 60, "mostly in company"


def test_none_is_passed_over_when_a_batch_has_no_room_for_all() -> None:
    model = Model(0.002)
    scheduler = Scheduler(model.run_batch, max_batch=3)

    def talk(name: str) -> Callable[[], None]:
        return lambda: [scheduler.step(name, name) for _ in range(15)] and None

    assert not together(*(talk(name) for name in "abcdefg"))
    assert all(len(rows) <= 3 for _, rows in model.log)
    order = [row for _, rows in model.log for row in rows]
    busy = order[: 7 * 12]  # while all of them still go on
    for name in "abcdefg":
        places = [index for index, row in enumerate(busy) if row == name]
        assert max(after - before for before, after in itertools.pairwise(places)) <= 2 * 7


def test_reading_holds_decoding_up_for_one_budget_at_most() -> None:
    model = Model(0.003)
    scheduler = Scheduler(model.run_batch, piece_tokens=100)
    done = threading.Event()

    def decode() -> None:
        for _ in range(25):
            scheduler.step("d", "d")
        done.set()

    def read(name: str) -> Callable[[], None]:
        def work() -> None:
            while not done.is_set():
                scheduler.run(model.piece(name), 60)

        return work

    assert not together(decode, read("x"), read("y"), read("z"))
    kinds = [kind for kind, _ in model.log]
    steps = [index for index, kind in enumerate(kinds) if kind == "batch"]
    gaps = sorted(b - a for a, b in itertools.pairwise(steps))
    # A few may be longer: where the machine keeps the decoding thread from asking, reading rightly goes on.
    assert gaps[len(gaps) * 3 // 4] <= 3, "no two budgets in a row"
    readers = [rows[0] for kind, rows in model.log if kind == "piece"]
    assert min(readers.count(name) for name in "xyz") >= len(readers) // 6, "readers take turns, too"


def test_decoding_does_not_starve_reading() -> None:
    model = Model(0.002)
    scheduler = Scheduler(model.run_batch)
    ends: dict[str, int] = {}

    def decode(name: str) -> Callable[[], None]:
        def work() -> None:
            for _ in range(60):
                scheduler.step(name, name)
            ends[name] = len(model.log)

        return work

    def read() -> None:
        for _ in range(5):
            scheduler.run(model.piece("p"), 128)
        ends["p"] = len(model.log)

    assert not together(decode("a"), decode("b"), read)
    assert ends["p"] < min(ends["a"], ends["b"])


def test_an_error_stays_with_the_row_that_met_it() -> None:
    model = Model(0.002)
    scheduler = Scheduler(model.run_batch)
    good: list[str] = []

    def talk(name: str) -> Callable[[], None]:
        def work() -> None:
            for count in range(10):
                if name == "bad":
                    with pytest.raises(ValueError, match="bad"):
                        scheduler.step(name, f"bad{count}")
                else:
                    good.append(scheduler.step(name, name))

        return work

    assert not together(talk("a"), talk("bad"), talk("c"))
    assert len(good) == 20


def test_an_error_of_the_whole_batch_reaches_all_and_the_model_goes_on() -> None:
    fails = True

    def run_batch(rows: Sequence[str]) -> list[str | Exception]:
        time.sleep(0.01)
        if fails:
            raise MemoryError("too large")
        return list(rows)

    scheduler: Scheduler[str, str] = Scheduler(run_batch)
    raised = together(*(lambda name=name: scheduler.step(name, name) and None for name in "abcd"))  # type: ignore[misc]
    assert [type(error) for error in raised] == [MemoryError] * 4
    fails = False
    assert scheduler.step("a", "fine") == "fine"


def test_work_that_fails_leaves_the_model_free() -> None:
    scheduler = Scheduler(Model().run_batch)

    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        scheduler.run(fail, 1)
    assert not scheduler.is_shared()
    assert len(together(*[lambda: scheduler.run(fail, 1)] * 3)) == 3
    assert scheduler.run(lambda: 7, 1) == 7


def test_an_interrupt_while_waiting_takes_the_request_back() -> None:
    """What an interrupted caller asked for doesn't run after it has gone on."""
    release, started = threading.Event(), threading.Event()
    ran: list[str] = []

    def hold() -> None:
        started.set()
        release.wait(10)

    scheduler = Scheduler(Model().run_batch)
    holder = threading.Thread(target=scheduler.run, args=(hold, 1))
    holder.start()
    started.wait(10)
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        while not scheduler._pieces:
            time.sleep(0.001)
        import signal

        signal.pthread_kill(main, signal.SIGINT)

    sender = threading.Thread(target=interrupt)
    sender.start()
    with pytest.raises(KeyboardInterrupt):
        scheduler.run(lambda: ran.append("late"), 1)
    release.set()
    holder.join(10)
    sender.join(10)
    assert scheduler.run(lambda: 1, 1) == 1
    assert ran == []


def test_a_mark_that_an_interrupt_left_does_not_lock_its_thread_out() -> None:
    scheduler = Scheduler(Model().run_batch)
    scheduler._runs_in = threading.get_ident()
    assert scheduler.step("a", "a") == "A"
    assert not scheduler.is_shared()


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [(0, 4, []), (1, 4, [1]), (4, 4, [4]), (5, 4, [5]), (6, 4, [4, 2]), (8, 4, [4, 4]), (9, 4, [4, 5])],
)
def test_no_piece_of_several_has_one_token(count: int, size: int, sizes: list[int]) -> None:
    cut = list(pieces(range(count), size))
    assert [len(piece) for piece in cut] == sizes
    assert [token for piece in cut for token in piece] == list(range(count))
