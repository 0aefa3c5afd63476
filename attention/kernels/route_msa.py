"""Scores of pooled routing keys for folded queries, with the maximum over query tokens taken on the way."""

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNKS = 64  # a program
CHANNELS = 64  # a step
TOKENS = 64  # query tokens a program; longer queries go over the keys again


@triton.jit
def score_chunks(
    queries_ptr, keys_ptr, out_ptr, tokens, chunks, width,
    CHUNKS: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """`CHUNKS` keys of `[chunks, width]` against all of `[tokens, width]`; `width` is a multiple of 16."""
    chunk = tl.program_id(0).to(tl.int64) * CHUNKS + tl.arange(0, CHUNKS)
    row = tl.arange(0, ROWS)
    channel = tl.arange(0, CHANNELS)
    best = tl.full((CHUNKS,), float("-inf"), tl.float32)
    for first in range(0, tokens, ROWS):
        token = first + row
        scores = tl.zeros((CHUNKS, ROWS), tl.float32)
        for start in range(0, width, CHANNELS):
            inside = start + channel < width
            keys = tl.load(
                keys_ptr + chunk[:, None] * width + (start + channel)[None, :],
                mask=(chunk < chunks)[:, None] & inside[None, :], other=0.0,
            )  # fmt: skip
            queries = tl.load(
                queries_ptr + token[:, None].to(tl.int64) * width + (start + channel)[None, :],
                mask=(token < tokens)[:, None] & inside[None, :], other=0.0,
            )  # fmt: skip
            scores = tl.dot(keys, tl.trans(queries), scores, input_precision="ieee")
        scores = tl.where((token < tokens)[None, :], scores, float("-inf"))
        best = tl.maximum(best, tl.max(scores, axis=1))
    tl.store(out_ptr + chunk, best, mask=chunk < chunks)


def route_msa(queries: Tensor, keys: Tensor) -> Tensor:
    """As `mnemos.attention.kernels.dispatch.route_msa`."""
    tokens, width = queries.shape
    out = torch.empty(len(keys), dtype=torch.float32, device=keys.device)
    score_chunks[(triton.cdiv(len(keys), CHUNKS),)](
        queries, keys, out, tokens, len(keys), width,
        CHUNKS=CHUNKS, CHANNELS=CHANNELS, ROWS=rows_of(tokens), num_warps=4, num_stages=4,
    )  # fmt: skip
    return out


def rows_of(tokens: int) -> int:
    """Query rows of a tile: a power of two from 16 to 64."""
    return int(min(TOKENS, max(16, triton.next_power_of_2(tokens))))
