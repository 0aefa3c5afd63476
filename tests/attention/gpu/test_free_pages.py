import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnemos.attention.gpu.free_pages import FreePages, runs_of


@given(st.integers(0, 40), st.lists(st.tuples(st.booleans(), st.integers(0, 12)), max_size=60))
def test_pages_are_handed_out_once(count: int, steps: list[tuple[bool, int]]) -> None:
    free, mine = FreePages(count), set(range(count))
    taken: list[list[int]] = []
    for taking, number in steps:
        if taking and number <= len(mine):
            longest = max((length for _, length in runs_of(sorted(mine))), default=0)
            pages = free.take(number)
            assert len(pages) == number and set(pages) <= mine
            assert number > longest or len(list(runs_of(pages))) <= 1  # one run where there is one
            mine -= set(pages)
            taken.append(pages)
        elif taking:
            with pytest.raises(ValueError, match="are free"):
                free.take(number)
        elif taken:
            pages = taken.pop(number % len(taken))
            free.give(pages)
            mine |= set(pages)
        assert free.count == len(mine)
        assert free._runs == list(runs_of(sorted(mine)))
