"""FlexAttention as a rival: compiled on a CUDA device, for its arithmetic alone elsewhere."""

import sys
import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
from torch import Tensor

from mnemos.attention.kernels.read_blocks import ReadBlocks
from mnemos.attention.kernels.timing import median_ms


def flex_ms(
    calls: Callable[[], Sequence[Callable[[], object]]], device: torch.device, repeats: int
) -> tuple[tuple[str, float], ...]:
    """Its median, as `Row.other_rivals` takes it; nothing where it doesn't run: stderr says why."""
    try:
        return (("FlexAttention", median_ms(calls(), device, repeats, in_graph=False)),)
    except Exception as error:  # a rival must not cost the rest of the table; whatever it raised is told
        print(f"FlexAttention was left out: {type(error).__name__}: {error}", file=sys.stderr)
        return ()


def flex_decode(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One query row a head, `q [batch, heads, 1, head_dim]`, over all keys."""
    return _flex(q.device.type)(q, k, v, enable_gqa=True)


def flex_reading(
    q: Tensor, k: Tensor, v: Tensor, there: Tensor, memory: ReadBlocks, score_scale: float
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """What `block_sparse` computes, as a function of q and of keys and values from `behind_own`.

    The mask of blocks is made here: its time is not part of a call's.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    tokens, keys, block_keys = q.shape[2], k.shape[2], memory.k.shape[1]
    reads = memory.blocks.shape[1]
    used = memory.used[memory.blocks]  # [sequences, reads]
    visible = memory.visible

    def sees(sequence: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        own = (key <= row + (keys - tokens)) & there[sequence, key.clamp(max=keys - 1)]
        read = ((key - keys) // block_keys).clamp(0, reads - 1)
        shown = visible[sequence, row, read] & ((key - keys) % block_keys < used[sequence, read])
        return torch.where(key < keys, own, shown) & there[sequence, row + (keys - tokens)]

    mask = create_block_mask(sees, len(q), None, tokens, keys + reads * block_keys, device=str(q.device))
    return partial(_flex(q.device.type), block_mask=mask, scale=score_scale, enable_gqa=True)


def behind_own(own: Tensor, blocks: Tensor, memory: ReadBlocks) -> Tensor:
    """The blocks that each sequence reads, copied behind its own keys or values."""
    return torch.cat((own, blocks[memory.blocks].flatten(1, 2).transpose(1, 2)), dim=2)


@cache
def _flex(device: str) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    if device == "cuda":
        return torch.compile(flex_attention, dynamic=False)  # type: ignore[no-any-return]

    def plain(*given: Tensor, **named: object) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that it is not compiled
            return flex_attention(*given, **named)  # type: ignore[no-any-return, arg-type]

    return plain
