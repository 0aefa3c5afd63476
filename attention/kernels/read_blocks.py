"""Blocks of keys that many sequences may read, and who reads which, as `block_sparse` wants it."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class ReadBlocks:
    """Keys and values in blocks, and for each token of each sequence which blocks it reads."""

    k: Tensor  # [blocks, keys, kv_heads, head_dim]
    v: Tensor  # [blocks, keys, kv_heads, head_dim]
    used: Tensor  # [blocks], int64: how many of its keys a block has
    blocks: Tensor  # [sequences, reads], int64: no block twice in a row, where a token reads it
    visible: Tensor  # [sequences, tokens, reads], bool: which of them each token reads


class Lists(NamedTuple):
    """Both ways through what is read, in tiles of query tokens. Made without waiting for the device."""

    tiles: Tensor  # [3, sequences, tiles, reads], int32: of each tile's reads the column, block, keys used
    counts: Tensor  # [sequences, tiles], int32: how many of them stand in front
    readers: Tensor  # int64, places in [sequences, tiles, reads]: those that read block 0, then block 1 ...
    starts: Tensor  # [blocks + 1], int64: where a block's readers begin


def list_reads(memory: ReadBlocks, rows: int) -> Lists:
    """The blocks that each tile of `rows` tokens reads, and the tiles that read each block."""
    sequences, tokens, reads = memory.visible.shape
    tiles = -(-tokens // rows)
    padded = functional.pad(memory.visible, (0, 0, 0, tiles * rows - tokens))
    read = padded.view(sequences, tiles, rows, reads).any(dim=2)  # [sequences, tiles, reads]
    order = (~read).to(torch.uint8).argsort(dim=2, stable=True)
    block = memory.blocks[:, None].expand(-1, tiles, -1)
    used = memory.used[memory.blocks][:, None].expand(-1, tiles, -1)
    listed = torch.stack((order, block.gather(2, order), used.gather(2, order))).to(torch.int32)
    ordered, readers = torch.where(read, block, len(memory.used)).flatten().sort(stable=True)
    starts = torch.searchsorted(ordered, torch.arange(len(memory.used) + 1, device=ordered.device))
    return Lists(listed, read.sum(dim=2).to(torch.int32), readers, starts)
