"""int8 and int4 quantisation of keys and values, and back.

K is quantised per channel in groups of 32 tokens, V per token in groups of 32 channels (the asymmetry
follows KIVI, arXiv 2402.02750: K has outlier channels, V has none). Each group keeps a scale and a minimum
in fp16. Scales belong to one span alone. A last group of under 16 tokens joins the one before it.
"""

from typing import Literal

import torch
from torch import Tensor

Bits = Literal[4, 8, 16]

GROUP = 32
_JOIN_BELOW = 16


def token_groups(tokens: int) -> list[int]:
    """Sizes of the token groups of K, in order: 32 each, the last between 16 and 47, or all when fewer."""
    full, rest = divmod(tokens, GROUP)
    sizes = [GROUP] * full
    if not rest:
        return sizes
    if full and rest < _JOIN_BELOW:
        sizes[-1] += rest
    else:
        sizes.append(rest)
    return sizes


def quantize_keys(k: Tensor, bits: Literal[4, 8]) -> tuple[Tensor, Tensor]:
    """`k [..., tokens, dim]` to codes `[..., tokens, dim]` (uint8) and scales `[2, ..., groups, dim]`
    (fp16).
    """
    codes, scales, minima = [], [], []
    for part in torch.split(k.float(), token_groups(k.shape[-2]), dim=-2):
        low = part.amin(dim=-2, keepdim=True)
        code, scale, low = _encode(part, low, part.amax(dim=-2, keepdim=True), bits)
        codes.append(code)
        scales.append(scale)
        minima.append(low)
    return torch.cat(codes, dim=-2), torch.stack([torch.cat(scales, dim=-2), torch.cat(minima, dim=-2)])


def quantize_values(v: Tensor, bits: Literal[4, 8]) -> tuple[Tensor, Tensor]:
    """`v [..., tokens, dim]` to codes of its shape (uint8) and scales `[2, ..., tokens, dim / 32]` (fp16)."""
    parts = torch.unflatten(v.float(), -1, (-1, value_group(v.shape[-1])))
    low, high = parts.amin(dim=-1, keepdim=True), parts.amax(dim=-1, keepdim=True)
    codes, scale, low = _encode(parts, low, high, bits)
    return codes.flatten(-2), torch.stack([scale[..., 0], low[..., 0]])


def dequantize_keys(codes: Tensor, scales: Tensor, out: Tensor) -> None:
    """The inverse of `quantize_keys`, written into `out [..., tokens, dim]`."""
    out.copy_(codes)
    start = 0
    for group, size in enumerate(token_groups(codes.shape[-2])):
        part = out[..., start : start + size, :]
        scale, low = (scales[i, ..., group : group + 1, :].to(out.dtype) for i in range(2))
        torch.addcmul(low, part, scale, out=part)
        start += size


def dequantize_values(codes: Tensor, scales: Tensor, out: Tensor) -> None:
    """The inverse of `quantize_values`, written into `out [..., tokens, dim]`."""
    out.copy_(codes)
    parts = torch.unflatten(out, -1, (-1, value_group(out.shape[-1])))
    scale, low = (scales[i].to(out.dtype).unsqueeze(-1) for i in range(2))
    torch.addcmul(low, parts, scale, out=parts)


def value_group(dim: int) -> int:
    """Channels a group of V: 32, or the whole head where 32 does not divide it."""
    return GROUP if dim % GROUP == 0 else dim


def pack_nibbles(codes: Tensor) -> Tensor:
    """`[..., dim]` codes of 0..15 to `[..., dim / 2]` bytes: the first half of the channels in the low
    nibbles.
    """
    low, high = codes.chunk(2, dim=-1)
    return low | (high << 4)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """The inverse of `pack_nibbles`."""
    return torch.cat([packed & 15, packed >> 4], dim=-1)


def _encode(x: Tensor, low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    top = 2**bits - 1
    low = low.half().float()
    scale = ((high - low) / top).half()
    step = scale.float()
    codes = torch.where(step > 0, (x - low) / step, 0).round_().clamp_(0, top).to(torch.uint8)
    return codes, scale, low.half()
