"""What `block_sparse` refuses before a launch."""

import torch
from torch import Tensor

from mnemos.attention.kernels.checks import (
    FLOATS,
    HEAD_DIMS,
    MAX_GROUP,
    check_dtype,
    check_shape,
    check_tensors,
)
from mnemos.attention.kernels.read_blocks import ReadBlocks

_NAME = "block_sparse"


def check_block_sparse(q: Tensor, k: Tensor, v: Tensor, there: Tensor, memory: ReadBlocks | None) -> None:
    """Raises ValueError. Which blocks are named is not looked at: that would wait for the device."""
    check_dtype(_NAME, "q", q, FLOATS)
    check_shape(_NAME, "q", q, (None, None, None, None))
    sequences, heads, tokens, dim = q.shape
    check_shape(_NAME, "k", k, (sequences, None, None, dim))
    kv_heads, keys = k.shape[1:3]
    check_shape(_NAME, "v", v, k.shape)
    check_shape(_NAME, "there", there, (sequences, keys))
    check_dtype(_NAME, "there", there, (torch.bool,))
    tensors = {"q": q, "k": k, "v": v, "there": there}
    if memory is not None:
        tensors |= _checked_memory(memory, (sequences, tokens), (kv_heads, dim))
    for name, tensor in tensors.items():
        if name.rpartition(".")[2] in ("k", "v"):
            check_dtype(_NAME, name, tensor, (q.dtype,))
    check_tensors(_NAME, **tensors)
    if dim not in HEAD_DIMS:
        raise ValueError(f"{_NAME}: head_dim is {dim}; it takes {', '.join(map(str, HEAD_DIMS))}")
    group, rest = divmod(heads, kv_heads)
    if rest or not 0 < group <= MAX_GROUP:
        raise ValueError(
            f"{_NAME}: {heads} heads over {kv_heads} KV heads; a group is 1 to {MAX_GROUP} heads"
        )
    if tokens > keys:
        raise ValueError(
            f"{_NAME}: {tokens} tokens ask and there are {keys} keys; they are the last of those"
        )
    if max(keys * dim, 0 if memory is None else memory.visible[0].numel()) >= 1 << 31:
        raise ValueError(
            f"{_NAME}: a sequence of {keys} keys is too long for one call; cut it into documents"
        )


def _checked_memory(
    memory: ReadBlocks, asked: tuple[int, int], heads_and_dim: tuple[int, int]
) -> dict[str, Tensor]:
    """Its tensors by name; `asked` is sequences and tokens."""
    check_shape(_NAME, "memory.k", memory.k, (None, None, *heads_and_dim))
    check_shape(_NAME, "memory.v", memory.v, memory.k.shape)
    check_shape(_NAME, "memory.used", memory.used, memory.k.shape[:1])
    check_shape(_NAME, "memory.blocks", memory.blocks, (asked[0], None))
    check_shape(_NAME, "memory.visible", memory.visible, (*asked, memory.blocks.shape[1]))
    check_dtype(_NAME, "memory.used", memory.used, (torch.int64,))
    check_dtype(_NAME, "memory.blocks", memory.blocks, (torch.int64,))
    check_dtype(_NAME, "memory.visible", memory.visible, (torch.bool,))
    return {f"memory.{part}": getattr(memory, part) for part in ("k", "v", "used", "blocks", "visible")}
