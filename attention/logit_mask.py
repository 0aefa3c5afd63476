"""Which tokens may come next: what constrained decoding says before one is sampled."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class LogitMask(Protocol):
    """The rule of one generation. It is asked once for each token, in order."""

    def allowed(self, tokens: Sequence[int]) -> Tensor:
        """Which tokens may follow `tokens`, those generated so far: booleans, `[vocab]`; one at least."""
        ...

    def is_finished(self, tokens: Sequence[int]) -> bool:
        """Whether nothing may follow `tokens` but the end of the turn."""
        ...
