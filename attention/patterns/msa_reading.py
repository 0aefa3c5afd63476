"""Attention of questions to themselves and to the documents that they were routed to.

On a CUDA device a kernel reads pooled documents where they lie in the bank and keeps no mask of token pairs;
elsewhere what a question reads is copied behind its own keys.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mnemos.attention.kernels import dispatch
from mnemos.attention.kernels.checks import FLOATS, HEAD_DIMS, MAX_GROUP
from mnemos.attention.kernels.read_blocks import ReadBlocks
from mnemos.attention.patterns import pooled_bank
from mnemos.attention.patterns.pooled_bank import PooledBank
from mnemos.attention.patterns.projections import attend

_WIDE_HEADS_NEED_BYTES = 160 << 10  # of shared memory a block, for more than 128 channels


class Memory(NamedTuple):
    """What questions read."""

    bank: PooledBank
    rows: Tensor  # [questions]: the sequence that each is of
    documents: Tensor  # [questions, read]: places in the bank
    visible: Tensor  # [questions, tokens, read]: which of them each token reads
    best: Tensor  # [questions, documents], without gradient
    scores: Tensor  # [questions, documents], with gradients


def attend_reading(
    q: Tensor, k: Tensor, v: Tensor, there: Tensor, scale: float, memory: Memory | None
) -> Tensor:
    """What questions come to, `[questions, heads, tokens, head_dim]`; anything where a token isn't there.

    Args:
        q: [questions, heads, tokens, key_dim], the last of the keys' tokens.
        k: [questions, kv_heads, keys, key_dim], their own.
        v: [questions, kv_heads, keys, head_dim].
        there: [questions, keys].
        scale: what a score is multiplied with.
        memory: what they read; None for nothing.
    """
    if memory is not None and not memory.documents.shape[1]:
        memory = None
    if dispatch.path_of(q) == "triton" and _kernel_takes(q, k):
        return _by_kernel(q, k, v, there, scale, memory)
    order = torch.arange(k.shape[2], device=q.device)
    queries = order[k.shape[2] - q.shape[2] :, None]
    # Each row has a key: what is not there sees itself.
    seen = (order <= queries) & (there[:, None] | (order == queries))
    if memory is not None:
        read = pooled_bank.take(memory.bank, memory.rows, memory.documents)
        chunk = torch.arange(read.k.shape[2], device=q.device)
        shown = memory.visible[..., None] & (chunk < read.used[..., None])[:, None]
        seen = torch.cat((seen, shown.flatten(2)), dim=2)
        k, v = (
            torch.cat((own, part.flatten(1, 2).transpose(1, 2)), dim=2)
            for own, part in ((k, read.k), (v, read.v))
        )
    return attend(q, k, v, scale, seen)


def _kernel_takes(q: Tensor, k: Tensor) -> bool:
    """Whether the kernel is compiled for these sizes, and the device has room for it."""
    width = q.shape[3]
    if q.dtype not in FLOATS or width > max(HEAD_DIMS) or q.shape[1] > MAX_GROUP * k.shape[1]:
        return False
    if not q.is_cuda:
        return True
    device = torch.cuda.get_device_properties(q.device)
    room = device.shared_memory_per_block_optin
    return device.major >= 8 and (width <= 128 or room >= _WIDE_HEADS_NEED_BYTES)


def _by_kernel(q: Tensor, k: Tensor, v: Tensor, there: Tensor, scale: float, memory: Memory | None) -> Tensor:
    width = v.shape[3]
    wide = min(size for size in HEAD_DIMS if size >= q.shape[3])
    blocks = None
    if memory is not None:
        bank = memory.bank
        places = memory.rows[:, None] * bank.used.shape[1] + memory.documents
        parts = (_ready(part.flatten(0, 1), wide, q.dtype) for part in (bank.k, bank.v))
        blocks = ReadBlocks(*parts, bank.used.flatten(), places, _aligned(memory.visible))
    q, k, v = (_ready(part, wide, q.dtype) for part in (q, k, v))
    return dispatch.block_sparse(q, k, v, _aligned(there), blocks, scale)[..., :width]


def _ready(part: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """As the kernel takes it: in one dtype (autocast pools in fp32), of a width that it is compiled for."""
    part = part.to(dtype)
    if part.shape[-1] < width:
        part = functional.pad(part, (0, width - part.shape[-1]))
    return _aligned(part)


def _aligned(part: Tensor) -> Tensor:
    part = part.contiguous()
    return part.clone() if part.data_ptr() % 16 else part
