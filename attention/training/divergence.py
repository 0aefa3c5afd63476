"""Whether a run is going wrong: numbers that are none, or a loss far above those of the steps before."""

import math
from collections import deque
from statistics import median

_WINDOW = 32  # losses that a new one is held against
_ENOUGH = 16
_DEVIATIONS = 12.0  # a spike is so many median deviations above the median ...
_RATIO = 1.5  # ... and so many times the median


class DivergenceWatch:
    """Judges each step's losses before its update is made."""

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=_WINDOW)

    def judge(self, loss: float, gradient_norm: float) -> str | None:
        """What is wrong with a step, or None; a step that is right counts for those to come.

        Args:
            loss: next-token loss, unweighted.
            gradient_norm: over all parameters, before clipping; not finite where any loss was not.
        """
        if not math.isfinite(loss):
            return "the loss is not finite"
        if not math.isfinite(gradient_norm):
            return "the gradient is not finite"
        if len(self._losses) >= _ENOUGH:
            middle = median(self._losses)
            deviation = median(abs(each - middle) for each in self._losses)
            if loss > middle + _DEVIATIONS * deviation and loss > _RATIO * middle + 0.5:
                return f"the loss jumped from about {middle:.3g} to {loss:.3g}"
        self._losses.append(loss)
        return None

    def forget(self) -> None:
        """For when losses of before say nothing any more: other lengths, or a rewind."""
        self._losses.clear()

    def to_json(self) -> list[float]:
        return list(self._losses)

    def restore(self, losses: list[float]) -> None:
        self._losses = deque(losses, maxlen=_WINDOW)
