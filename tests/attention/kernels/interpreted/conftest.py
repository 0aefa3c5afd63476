"""These files run in Triton's interpreter, in the process that `test_interpreter.py` starts for them.

The interpreter must be chosen before Triton is first imported, and a process that has it cannot compile.
"""

import os
from collections.abc import Iterator

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """New tensors of floats are full of NaN, those of integers of ones: what no kernel wrote shows."""
    plain = torch.empty

    def empty(*args: object, **kwargs: object) -> torch.Tensor:
        tensor = plain(*args, **kwargs)  # type: ignore[call-overload]
        return tensor.fill_(float("nan") if tensor.is_floating_point() else 1)

    monkeypatch.setattr(torch, "empty", empty)
    yield
