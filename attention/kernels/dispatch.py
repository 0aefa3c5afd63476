"""The kernels' one way in: inputs are checked, then Triton runs on CUDA devices and plain torch elsewhere."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

from torch import Tensor

from mnemos.attention.kernels.checks import FLOATS, check_dtype, check_shape, check_tensors
from mnemos.attention.kernels.memory_table import MemoryTable, SplitPlan

Path = Literal["triton", "naive"]

HEAD_DIMS = (64, 80, 96, 128, 256)
MAX_GROUP = 16

_forced: ContextVar[Path | None] = ContextVar("mnemos_kernel_path", default=None)


@contextmanager
def forced(path: Path) -> Iterator[None]:
    """Take this path whatever the device; for tests and for comparing the two."""
    token = _forced.set(path)
    try:
        yield
    finally:
        _forced.reset(token)


def split_kv_attention(
    q: Tensor, table: MemoryTable, plan: SplitPlan, layer: int, score_scale: float, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One query row per head over the memories of each conversation.

    `q [batch, heads, head_dim]`; `score_scale` is the model's over the temperature; `bias [spans of the
    table]` (fp32) is added to the scores of a span's tokens. Returns the output `[batch, heads, head_dim]`
    and the log-sum-exp of the scores `[batch, heads]`, both fp32. Raises ValueError.
    """
    name = "split_kv_attention"
    check_dtype(name, "q", q, FLOATS)
    check_shape(name, "q", q, (plan.batch, None, table.head_dim))
    tensors = {"q": q, "table.pool": table.pool, "table.rows": table.rows, "plan.work": plan.work}
    if bias is not None:
        check_shape(name, "bias", bias, (len(table.tokens),))
        check_dtype(name, "bias", bias, FLOATS[2:])
        tensors["bias"] = bias
    check_tensors(name, **tensors)
    if table.head_dim not in HEAD_DIMS:
        raise ValueError(f"{name}: head_dim is {table.head_dim}; it takes {', '.join(map(str, HEAD_DIMS))}")
    group, rest = divmod(q.shape[1], table.kv_heads)
    if rest or group > MAX_GROUP:
        raise ValueError(
            f"{name}: {q.shape[1]} heads over {table.kv_heads} KV heads; a group is 1 to {MAX_GROUP} heads"
        )
    if not 0 <= layer < table.layers:
        raise ValueError(f"{name}: layer {layer} of a table of {table.layers} layers")
    return _twin(name, q)(q, table, plan, layer, score_scale, bias)  # type: ignore[no-any-return]


def _twin(name: str, tensor: Tensor) -> Any:
    """The kernel's function on the path for this tensor's device; Triton is first imported here."""
    path = _forced.get() or ("triton" if tensor.is_cuda else "naive")
    package = "mnemos.attention.kernels" + (".naive" if path == "naive" else "")
    return getattr(importlib.import_module(f"{package}.{name}"), name)
