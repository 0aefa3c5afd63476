"""Block-sparse attention in Triton's interpreter: its output and its gradients against those of its twin."""

import pytest
import torch
from torch import Tensor

from mnemos.attention.kernels.block_sparse import tiling
from mnemos.attention.kernels.dispatch import block_sparse, forced
from mnemos.attention.kernels.naive.block_sparse import block_sparse as plain
from mnemos.attention.kernels.read_blocks import ReadBlocks, list_reads

MOST = {torch.float32: 2e-6, torch.float16: 2e-3}  # of the norm


def inputs(
    dtype: torch.dtype,
    group: int,
    dim: int,
    tokens: int,
    *,
    before: int = 0,
    block_keys: int = 8,
    reads: int = 3,
    kv_heads: int = 1,
    sequences: int = 2,
    blocks: int = 5,
) -> tuple[list[Tensor], ReadBlocks]:
    """q, k, v and there, and blocks of ragged use that some tokens read."""
    torch.manual_seed(dim + tokens + group)
    q = torch.randn(sequences, kv_heads * group, tokens, dim).to(dtype)
    k, v = (torch.randn(sequences, kv_heads, before + tokens, dim).to(dtype) for _ in range(2))
    there = torch.rand(sequences, before + tokens) < 0.8
    there[0, -1] = True
    if sequences > 1:
        there[-1, before + tokens // 2 :] = False  # a tile or more of nobody
    block_k, block_v = (torch.randn(blocks, block_keys, kv_heads, dim).to(dtype) for _ in range(2))
    used = torch.randint(1, block_keys + 1, (blocks,))
    used[0] = block_keys
    chosen = torch.stack([torch.randperm(blocks)[:reads] for _ in range(sequences)])
    visible = torch.rand(sequences, tokens, reads) < 0.4
    visible[:, : tokens // 2, 0] = False
    visible[:, 0, -1] = True
    return [q, k, v, there], ReadBlocks(block_k, block_v, used, chosen, visible)


def with_gradients(form, given: list[Tensor], memory: ReadBlocks | None, weight: Tensor, wide: bool = False):
    """The output and the gradients of all that has any."""
    parts = [*given[:3], *((memory.k, memory.v) if memory else ())]
    parts = [(part.double() if wide else part.clone()).requires_grad_() for part in parts]
    if memory:
        memory = ReadBlocks(*parts[3:], memory.used, memory.blocks, memory.visible)
    out = form(*parts[:3], given[3], memory, 0.11)
    (out * weight.to(out.dtype)).sum().backward()
    return [out.detach(), *(part.grad for part in parts)]


def check(given: list[Tensor], memory: ReadBlocks | None) -> None:
    weight = torch.randn(given[0].shape)
    with forced("triton"):
        ours = with_gradients(block_sparse, given, memory, weight)
    exact = with_gradients(plain, given, memory, weight.to(given[0].dtype), wide=True)
    for name, mine, twin in zip(("out", "dq", "dk", "dv", "block dk", "block dv"), ours, exact, strict=False):
        assert mine.dtype == given[0].dtype
        error = (mine.double() - twin).norm() / twin.norm()
        assert error < MOST[given[0].dtype], f"{name}: {error}"  # a NaN is not less


@pytest.mark.parametrize(
    ("dtype", "group", "dim", "tokens", "more"),
    [
        (torch.float32, 2, 64, 35, {"before": 3, "kv_heads": 2}),
        (torch.float16, 3, 64, 67, {"before": 7, "sequences": 1}),
        (torch.float16, 1, 80, 63, {"block_keys": 5}),
        (torch.float32, 2, 96, 33, {"block_keys": 37, "blocks": 3}),  # a block of more than one tile
        (torch.float16, 2, 128, 33, {"block_keys": 1, "reads": 5}),
        (torch.float16, 16, 256, 31, {"sequences": 1}),
        (torch.float32, 1, 256, 17, {"block_keys": 17}),
        (torch.float32, 2, 64, 1, {}),
        (torch.float32, 1, 128, 1, {"before": 40, "reads": 1, "blocks": 1, "sequences": 1}),
    ],
)
def test_output_and_gradients(
    dtype: torch.dtype, group: int, dim: int, tokens: int, more: dict[str, int], poisoned: None
) -> None:
    check(*inputs(dtype, group, dim, tokens, **more))


def test_without_blocks(poisoned: None) -> None:
    given, _ = inputs(torch.float32, 1, 64, 40)
    check(given, None)


def test_who_is_not_there_comes_to_nothing_and_gets_no_gradient(poisoned: None) -> None:
    given, memory = inputs(torch.float32, 1, 64, 65)
    with forced("triton"):
        out, dq, dk, dv, block_dk, _ = with_gradients(block_sparse, given, memory, torch.ones(given[0].shape))
    absent = ~given[3]
    for part in (out, dq, dk, dv):
        assert not part.transpose(1, 2)[absent].any()
        assert part.transpose(1, 2)[~absent].any()
    beyond = torch.arange(8) >= memory.used[:, None]
    assert not block_dk[beyond].any()


def test_runs_repeat_bit_for_bit() -> None:
    given, memory = inputs(torch.float16, 2, 64, 33, sequences=1)
    with forced("triton"):
        first, second = (
            with_gradients(block_sparse, given, memory, torch.ones(given[0].shape)) for _ in range(2)
        )
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_lists_hold_what_is_read_both_ways() -> None:
    _, memory = inputs(torch.float32, 1, 64, 70, reads=4)
    rows = tiling(torch.float32, 64).rows
    lists = list_reads(memory, rows)
    tiles = -(-70 // rows)
    expected: dict[int, list[int]] = {block: [] for block in range(5)}
    for sequence in range(2):
        for tile in range(tiles):
            seen = memory.visible[sequence, tile * rows : (tile + 1) * rows].any(dim=0)
            count = int(lists.counts[sequence, tile])
            columns, blocks, used = lists.tiles[:, sequence, tile, :count].tolist()
            assert columns == seen.nonzero()[:, 0].tolist()
            assert blocks == memory.blocks[sequence, columns].tolist()
            assert used == memory.used[blocks].tolist()
            for column, block in zip(columns, blocks, strict=True):
                expected[block].append((sequence * tiles + tile) * 4 + column)
    for block, places in expected.items():
        assert lists.readers[lists.starts[block] : lists.starts[block + 1]].tolist() == places
