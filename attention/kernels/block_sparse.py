"""Block-sparse attention that trains: a sequence's own earlier tokens, and the blocks that each token reads.

FlashAttention-2's way (arXiv 2307.08691): a tile of queries goes over its keys with a running softmax, and
the log-sum-exp of its scores is all that is kept for the gradients (`block_sparse_backward.py`). Blocks are
read where they lie, through a list for each tile of queries; short ones share a tile of keys.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from mnemos.attention.kernels.block_sparse_backward import grad_blocks, grad_own, grad_queries
from mnemos.attention.kernels.block_sparse_tiles import load_listed, load_own, load_rows, store_rows
from mnemos.attention.kernels.read_blocks import Lists, ReadBlocks, list_reads

_LOG2E = 1.4426950408889634


@triton.jit
def _add_to_output(acc, total, top, q, k, v, seen, scale_log2, PRECISION: tl.constexpr):
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2  # [ROWS, KEYS]
    scores = tl.where(seen, scores, float("-inf"))
    higher = tl.maximum(top, tl.max(scores, axis=1))
    base = tl.where(higher == float("-inf"), 0.0, higher)  # a row that has seen nothing yet
    weight = tl.exp2(scores - base[:, None])
    fade = tl.exp2(top - base)
    total = total * fade + tl.sum(weight, axis=1)
    acc = tl.dot(weight.to(v.dtype), v, acc * fade[:, None], input_precision=PRECISION)
    return acc, total, higher


@triton.jit
def attend_blocks(
    q_ptr, k_ptr, v_ptr, there_ptr, block_k_ptr, block_v_ptr, visible_ptr, lists_ptr, counts_ptr,
    out_ptr, lse_ptr,
    tokens, keys, reads, block_keys, kv_heads, list_size, scale_log2,
    GROUP: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    CHUNK: tl.constexpr, HAS_BLOCKS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head: the output, and the log2-sum-exp2 of scores, inf where nobody asks."""
    plane = tl.program_id(0).to(tl.int64)
    tile = tl.num_programs(1) - 1 - tl.program_id(1)  # those with most keys begin first
    sequence = plane // (kv_heads * GROUP)
    kv_head = plane % (kv_heads * GROUP) // GROUP
    row = tile * ROWS + tl.arange(0, ROWS)
    offset = keys - tokens
    asks = tl.load(there_ptr + sequence * keys + offset + row, mask=row < tokens, other=0) != 0
    any_asks = tl.max(asks.to(tl.int32), axis=0)
    q = load_rows(q_ptr, plane, row, tokens, DIM, PADDED)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, PADDED), tl.float32)
    end = tl.minimum(tile * ROWS + ROWS + offset, keys) * any_asks
    for start in range(0, end, KEYS):
        k, v, seen = load_own(
            k_ptr, v_ptr, there_ptr, sequence, sequence * kv_heads + kv_head, start, row, offset, keys,
            DIM, PADDED, KEYS,
        )  # fmt: skip
        acc, total, top = _add_to_output(acc, total, top, q, k, v, seen, scale_log2, PRECISION)
    if HAS_BLOCKS:
        pieces = tl.cdiv(block_keys, CHUNK)
        list_at = (sequence * tl.num_programs(1) + tile) * reads
        count = tl.load(counts_ptr + sequence * tl.num_programs(1) + tile) * any_asks
        for step in range(0, tl.cdiv(count, KEYS // CHUNK) * pieces):
            k, v, seen = load_listed(
                block_k_ptr, block_v_ptr, visible_ptr, lists_ptr, list_at, list_size, count, step, pieces,
                sequence, kv_head, row, tokens, reads, block_keys, kv_heads, DIM, PADDED, ROWS, KEYS, CHUNK,
            )  # fmt: skip
            acc, total, top = _add_to_output(acc, total, top, q, k, v, seen, scale_log2, PRECISION)
    weigh = tl.where(asks, 1.0 / tl.where(total > 0, total, 1.0), 0.0)
    store_rows(out_ptr, plane, row, tokens, acc * weigh[:, None], DIM, PADDED)
    lse = tl.where(asks, top + tl.log2(tl.where(total > 0, total, 1.0)), float("inf"))
    tl.store(lse_ptr + plane * tokens + row, lse, mask=row < tokens)


@dataclass(frozen=True, slots=True)
class Tiling:
    """Sizes of the tiles and how a program runs, by dtype and width."""

    rows: int  # queries of a tile: of the lists too
    keys: int
    warps: int
    stages: int
    own_rows: int  # the same for gradients of a sequence's own keys
    own_keys: int
    own_warps: int


def tiling(dtype: torch.dtype, dim: int) -> Tiling:
    """Held to the limits of registers by the ahead-of-time tests."""
    if dtype == torch.float32:
        return Tiling(32, 32, 4, 2, 32, 32, 4) if dim <= 128 else Tiling(16, 16, 4, 2, 16, 16, 4)
    if dim <= 64:
        return Tiling(64, 32, 4, 2, 32, 64, 4)
    return Tiling(64, 32, 4, 2, 32, 64, 8) if dim <= 128 else Tiling(64, 32, 8, 2, 32, 32, 8)


def chunk_of(block_keys: int, keys: int) -> int:
    """Keys of one block in a tile of `keys`: the blocks' size to the next power of two, or the whole tile."""
    return int(min(keys, triton.next_power_of_2(block_keys)))


def block_sparse(
    q: Tensor, k: Tensor, v: Tensor, there: Tensor, memory: ReadBlocks | None, score_scale: float
) -> Tensor:
    """As `mnemos.attention.kernels.dispatch.block_sparse`."""
    lists = None if memory is None else list_reads(memory, tiling(q.dtype, q.shape[3]).rows)
    parts = (None, None) if memory is None else (memory.k, memory.v)
    out: Tensor = _BlockSparse.apply(q, k, v, *parts, there, memory, lists, score_scale)
    return out


class _BlockSparse(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        block_k: Tensor | None,
        block_v: Tensor | None,
        there: Tensor,
        memory: ReadBlocks | None,
        lists: Lists | None,
        score_scale: float,
    ) -> Tensor:
        out, lse = attend(q, k, v, there, memory, lists, score_scale)
        ctx.save_for_backward(q, k, v, block_k, block_v, there, out, lse)
        ctx.reads = None if memory is None else (memory.used, memory.blocks, memory.visible)
        ctx.lists, ctx.score_scale = lists, score_scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, block_k, block_v, there, out, lse = ctx.saved_tensors
        memory = None if ctx.reads is None else ReadBlocks(block_k, block_v, *ctx.reads)
        found = gradients(q, k, v, there, memory, ctx.lists, ctx.score_scale, out, lse, given.contiguous())
        return *found, None, None, None, None


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    there: Tensor,
    memory: ReadBlocks | None,
    lists: Lists | None,
    score_scale: float,
) -> tuple[Tensor, Tensor]:
    """The output and the log2-sum-exp2 of scores, `[sequences, heads, tokens]`."""
    sequences, heads, tokens, dim = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(sequences, heads, tokens, dtype=torch.float32, device=q.device)
    tiles = tiling(q.dtype, dim)
    pointers, sizes, constants = _common(q, k, v, there, memory, lists)
    attend_blocks[(sequences * heads, triton.cdiv(tokens, tiles.rows))](
        *pointers, out, lse, *sizes, score_scale * _LOG2E,
        **constants, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return out, lse


def gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    there: Tensor,
    memory: ReadBlocks | None,
    lists: Lists | None,
    score_scale: float,
    out: Tensor,
    lse: Tensor,
    given: Tensor,
) -> tuple[Tensor | None, ...]:
    """Those of q, k, v and of the blocks' k and v, for the output's gradient `given`."""
    sequences, heads, tokens, dim = q.shape
    kv_heads, keys = k.shape[1:3]
    dq, dk, dv = (torch.empty(part.shape, dtype=part.dtype, device=q.device) for part in (q, k, v))
    delta = torch.empty(lse.shape, dtype=torch.float32, device=q.device)
    tiles = tiling(q.dtype, dim)
    scales = (score_scale, score_scale * _LOG2E)
    pointers, sizes, constants = _common(q, k, v, there, memory, lists)
    grad_queries[(sequences * heads, triton.cdiv(tokens, tiles.rows))](
        *pointers, out, given, lse, delta, dq, *sizes, *scales,
        **constants, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    shape = {name: constants[name] for name in ("GROUP", "DIM", "PADDED", "PRECISION")}
    grad_own[(sequences * kv_heads, triton.cdiv(keys, tiles.own_keys))](
        q, k, v, pointers[3], given, lse, delta, dk, dv, tokens, keys, kv_heads, *scales,
        **shape, ROWS=tiles.own_rows, KEYS=tiles.own_keys, num_warps=tiles.own_warps, num_stages=tiles.stages,
    )  # fmt: skip
    if memory is None or lists is None:
        return dq, dk, dv, None, None
    block_dk, block_dv = (
        torch.empty(part.shape, dtype=part.dtype, device=q.device) for part in (memory.k, memory.v)
    )
    blocks, block_keys = memory.k.shape[:2]
    width = max(16, constants["CHUNK"])
    grad_blocks[(blocks * kv_heads, triton.cdiv(block_keys, width))](
        q, memory.k, memory.v, memory.used, pointers[6], lists.readers, lists.starts,
        given, lse, delta, block_dk, block_dv,
        tokens, lists.counts.shape[1], memory.visible.shape[2], block_keys, kv_heads, *scales,
        **shape, ROWS=tiles.rows, KEYS=width, num_warps=4, num_stages=tiles.stages,
    )  # fmt: skip
    return dq, dk, dv, block_dk, block_dv


def _common(
    q: Tensor, k: Tensor, v: Tensor, there: Tensor, memory: ReadBlocks | None, lists: Lists | None
) -> tuple[tuple[Tensor, ...], tuple[int, ...], dict[str, Any]]:
    """Pointers, sizes and constants that the kernels over tiles of queries share."""
    dim, tokens, kv_heads, keys = q.shape[3], q.shape[2], k.shape[1], k.shape[2]
    tiles = tiling(q.dtype, dim)
    constants: dict[str, Any] = {
        "GROUP": q.shape[1] // kv_heads,
        "DIM": dim,
        "PADDED": triton.next_power_of_2(dim),
        "ROWS": tiles.rows,
        "KEYS": tiles.keys,
        "CHUNK": tiles.keys,
        "HAS_BLOCKS": memory is not None,
        "PRECISION": "ieee",
    }
    own = (q, k, v, there.view(torch.uint8))
    if memory is None or lists is None:
        # Pointers that nothing is read from.
        return (*own, k, v, own[3], own[3], own[3]), (tokens, keys, 1, 1, kv_heads, 1), constants
    block_keys, reads = memory.k.shape[1], memory.visible.shape[2]
    constants["CHUNK"] = chunk_of(block_keys, tiles.keys)
    pointers = (*own, memory.k, memory.v, memory.visible.view(torch.uint8), lists.tiles, lists.counts)
    return pointers, (tokens, keys, reads, block_keys, kv_heads, lists.tiles[0].numel()), constants
