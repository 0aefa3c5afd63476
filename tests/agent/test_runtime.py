"""Places for turns: bounded, first come first served, and none lost."""

import asyncio
import gc
import threading
import time

import pytest

from mnemos.agent.runtime import Runtime
from mnemos.errors import BusyError, UsageError


def test_a_full_queue_and_a_long_wait_say_so_and_what_to_do() -> None:
    runtime = Runtime(max_turns=1, max_waiting=1, wait_s=0.05)
    with runtime.turn():
        with pytest.raises(BusyError, match=r"within 0.05 s.*nothing was stored"), runtime.turn():
            pass
        waiter = threading.Thread(target=lambda: _try(Runtime.turn, runtime))
        runtime.wait_s = 5
        waiter.start()
        while not runtime.waiting:
            time.sleep(0.001)
        with pytest.raises(BusyError, match="1 turns run on this model and 1 wait"), runtime.turn():
            pass
    waiter.join(5)
    assert (runtime.running, runtime.waiting) == (0, 0)


def _try(turn: object, runtime: Runtime) -> None:
    with runtime.turn():
        pass


def test_places_go_to_who_waited_longest_threads_and_tasks_alike() -> None:
    runtime = Runtime(max_turns=2, wait_s=10)
    order: list[int] = []
    most = 0
    running = 0
    guard = threading.Lock()

    def note(number: int, change: int) -> None:
        nonlocal most, running
        with guard:
            running += change
            most = max(most, running)
            if change > 0:
                order.append(number)

    def in_thread(number: int) -> None:
        with runtime.turn():
            note(number, 1)
            time.sleep(0.01)
            note(number, -1)

    async def in_task(number: int) -> None:
        await runtime.enter_async()
        try:
            note(number, 1)
            await asyncio.sleep(0.01)
            note(number, -1)
        finally:
            runtime.leave()

    async def all_of_them() -> None:
        works = []
        for number in range(12):
            works.append(
                asyncio.create_task(in_task(number))
                if number % 2
                else asyncio.create_task(asyncio.to_thread(in_thread, number))
            )
            while runtime.running + runtime.waiting + len(order) < number + 1 and number not in order:
                await asyncio.sleep(0.0005)
        await asyncio.gather(*works)

    asyncio.run(all_of_them())
    assert sorted(order) == list(range(12))
    assert most == 2
    assert all(abs(place - number) <= 2 for place, number in enumerate(order)), order
    assert (runtime.running, runtime.waiting) == (0, 0)


def test_a_cancelled_waiter_leaves_the_queue_and_a_place_it_was_just_given() -> None:
    runtime = Runtime(max_turns=1, wait_s=10)

    async def cancel() -> None:
        await runtime.enter_async()
        waiting = [asyncio.create_task(runtime.enter_async()) for _ in range(3)]
        await asyncio.sleep(0)
        assert runtime.waiting == 3
        waiting[1].cancel()
        await asyncio.sleep(0.01)
        assert runtime.waiting == 2
        runtime.leave()  # the first one has it now, and is cancelled before it knows
        waiting[0].cancel()
        await asyncio.wait_for(waiting[2], 5)
        assert (runtime.running, runtime.waiting) == (1, 0)
        runtime.leave()

    asyncio.run(cancel())
    assert runtime.running == 0


def test_a_waiter_whose_loop_is_gone_is_passed_over() -> None:
    runtime = Runtime(max_turns=1, wait_s=10)
    loop = asyncio.new_event_loop()
    with runtime.turn():
        task = loop.create_task(runtime.enter_async())
        loop.run_until_complete(asyncio.sleep(0.01))
        assert runtime.waiting == 1
        loop.close()
    assert (runtime.running, runtime.waiting) == (0, 0)
    del task
    gc.collect()  # the coroutine ends now, and has nothing to give back
    assert (runtime.running, runtime.waiting) == (0, 0)


@pytest.mark.parametrize("bad", [{"max_turns": 0}, {"max_waiting": -1}, {"wait_s": -1}])
def test_bounds_that_mean_nothing(bad: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        Runtime(**bad)  # type: ignore[arg-type]
