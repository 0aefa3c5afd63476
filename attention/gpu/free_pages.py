"""Numbers of free pages, handed out in as few runs of neighbours as there are."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

Run = tuple[int, int]  # first page, pages


class FreePages:
    """Pages 0 to `count` - 1, all free at first."""

    def __init__(self, count: int) -> None:
        self._runs: list[Run] = [(0, count)] if count else []  # by first page, none touching another
        self.count = count

    def take(self, count: int) -> list[int]:
        """Free pages from the shortest run that has as many, otherwise from the longest runs.

        Raises ValueError when there are fewer.
        """
        if count > self.count:
            raise ValueError(f"{count} pages were asked for, and {self.count} are free")
        taken: list[int] = []
        while len(taken) < count:
            rest = count - len(taken)
            enough = [run for run in self._runs if run[1] >= rest]
            first, length = min(enough, key=_length) if enough else max(self._runs, key=_length)
            used = min(rest, length)
            at = bisect_left(self._runs, (first, length))
            self._runs[at : at + 1] = [(first + used, length - used)] if used < length else []
            taken += range(first, first + used)
        self.count -= count
        return taken

    def give(self, pages: Sequence[int]) -> None:
        """Pages that were taken are free again."""
        for run in runs_of(sorted(pages)):
            self._give(run)
        self.count += len(pages)

    def _give(self, run: Run) -> None:
        first, length = run
        at = bisect_left(self._runs, run)
        begin, end = at, at
        if at and sum(self._runs[at - 1]) == first:
            begin, first, length = at - 1, self._runs[at - 1][0], length + self._runs[at - 1][1]
        if at < len(self._runs) and self._runs[at][0] == first + length:
            end, length = at + 1, length + self._runs[at][1]
        self._runs[begin:end] = [(first, length)]


def runs_of(pages: Sequence[int]) -> Iterator[Run]:
    """Neighbours that stand side by side in `pages`, as runs."""
    start = 0
    for index in range(1, len(pages) + 1):
        if index == len(pages) or pages[index] != pages[index - 1] + 1:
            yield pages[start], index - start
            start = index


def _length(run: Run) -> int:
    return run[1]
