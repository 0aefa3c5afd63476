from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from mnemos.attention.admission import SMALL_SHARE, S3Fifo

ASKED = st.lists(st.integers(0, 12), max_size=120)


def ask(policy: S3Fifo[int], key: int, size: int = 1) -> list[int]:
    """What leaves when a key is asked for."""
    if key in policy:
        policy.touch(key)
        return []
    return policy.admit(key, size) or []


def naive(asked: list[int], room: int) -> list[bool]:
    """Hits of the same policy with all sizes 1, in lists."""
    small: deque[int] = deque()
    main: deque[int] = deque()
    left: deque[int] = deque()
    count: dict[int, int] = {}
    hits = []
    for key in asked:
        hits.append(key in count)
        if key in count:
            count[key] = min(count[key] + 1, 3)
            continue
        count[key] = 0
        if key in left:
            left.remove(key)
            main.append(key)
        else:
            small.append(key)
        while len(small) + len(main) > room:
            if small and (len(small) > SMALL_SHARE * room or not main):
                first = small.popleft()
                if count[first]:
                    count[first] = 0
                    main.append(first)
                else:
                    del count[first]
                    left.append(first)
                    if len(left) > room:
                        left.popleft()
            else:
                first = main.popleft()
                if count[first]:
                    count[first] -= 1
                    main.append(first)
                else:
                    del count[first]
    return hits


@given(ASKED, st.integers(1, 8))
def test_it_hits_where_the_naive_form_does(asked: list[int], room: int) -> None:
    policy: S3Fifo[int] = S3Fifo(room)
    hits = []
    for key in asked:
        hits.append(key in policy)
        ask(policy, key)
    assert hits == naive(asked, room)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 7)), max_size=80), st.integers(1, 12))
def test_it_is_never_over_its_budget_and_names_what_leaves(asked: list[tuple[int, int]], room: int) -> None:
    policy: S3Fifo[int] = S3Fifo(room)
    held: dict[int, int] = {}
    for key, size in asked:
        if key in policy:
            policy.touch(key)
            continue
        leaving = policy.admit(key, size)
        assert (leaving is None) == (size > room)
        if leaving is not None:
            held[key] = size
            for each in leaving:
                del held[each]
        assert sorted(held) == sorted(policy.keys())
        assert policy.bytes == sum(held.values()) <= room


def test_what_comes_once_makes_way_for_what_comes_again() -> None:
    policy: S3Fifo[int] = S3Fifo(4)
    for key in (1, 2, 1, 2):
        ask(policy, key)
    for key in range(10, 30):  # each once
        ask(policy, key)
    assert 1 in policy and 2 in policy


def test_what_is_dropped_is_not_remembered() -> None:
    policy: S3Fifo[str] = S3Fifo(2)
    for key in ("a", "b", "c"):
        policy.admit(key, 1)
    assert sorted(policy.known()) == ["a", "b", "c"]  # one of them by its key alone
    for key in ("a", "b", "c"):
        policy.drop(key)
    assert policy.known() == [] and policy.bytes == 0
