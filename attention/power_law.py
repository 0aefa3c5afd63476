"""How something grows with something else: a straight line through the logarithms."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """`y = factor * x ** exponent`, fitted."""

    exponent: float
    error: float | None  # standard error of the exponent; None through two points
    factor: float

    def solve(self, y: float) -> float:
        """The x at which y is reached; infinite where it never grows."""
        return (y / self.factor) ** (1 / self.exponent) if self.exponent > 0 else math.inf


def fit(xs: Sequence[float], ys: Sequence[float]) -> PowerLaw:
    """By least squares in the logarithms. ValueError: fewer than two different xs, or values not above 0."""
    if len(set(xs)) < 2 or len(xs) != len(ys) or min(*xs, *ys) <= 0:
        raise ValueError("a power law needs two points or more, all above zero")
    logs = [(math.log(x), math.log(y)) for x, y in zip(xs, ys, strict=True)]
    count = len(logs)
    mean_x, mean_y = (sum(pair[axis] for pair in logs) / count for axis in (0, 1))
    spread = sum((x - mean_x) ** 2 for x, _ in logs)
    exponent = sum((x - mean_x) * (y - mean_y) for x, y in logs) / spread
    offset = mean_y - exponent * mean_x
    left = sum((y - offset - exponent * x) ** 2 for x, y in logs)
    error = math.sqrt(left / (count - 2) / spread) if count > 2 else None
    return PowerLaw(exponent, error, math.exp(offset))
