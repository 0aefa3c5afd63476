"""Numbers as one line of blocks."""

import math
from collections.abc import Sequence
from itertools import pairwise

_BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int) -> str:
    """`values` as at most `width` characters, the lowest as the lowest block; each is a mean of its share.

    What is not finite is left out.
    """
    finite = [value for value in values if math.isfinite(value)]
    count = min(width, len(finite))
    edges = [len(finite) * index // count for index in range(count + 1)] if count else []
    means = [sum(finite[start:stop]) / (stop - start) for start, stop in pairwise(edges)]
    if not means:
        return ""
    low, span = min(means), max(means) - min(means)
    last = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round(last * (mean - low) / span) if span else 0] for mean in means)
